"""Simulated 2-D physics videos: the world that the bundled model was trained on, with its ground truth.

```python
from diffusers_videogpt.worlds import simulate

scene = simulate("fall", seed=7)  # scene.frames is uint8 (24, 64, 64, 3)
print(scene.caption)
```

Needs `pip install diffusers-videogpt[worlds]`: pymunk for the dynamics, pygame-ce for the picture. No display is opened.
"""

from .picture import PALETTE, count_objects
from .scenes import SCENE_KINDS, Scene, SceneObject, simulate


__all__ = ["PALETTE", "SCENE_KINDS", "Scene", "SceneObject", "count_objects", "simulate"]
