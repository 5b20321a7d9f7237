"""Simulated 2-D physics videos: the world that the bundled model was trained on, with its ground truth.

```python
from diffusers_videogpt.worlds import simulate

scene = simulate("fall", seed=7)  # scene.frames is uint8 (24, 64, 64, 3)
print(scene.caption)
```

`steer` simulates one in which a ball obeys actions.

Needs `pip install ".[worlds]"` in the repository: pymunk for the dynamics, pygame-ce for the picture. No display is opened.
"""

from .motions import MOTIONS, Animation, animate, write_motion_set
from .orders import Group, Order, draw_order
from .picture import PALETTE, Region, count_objects, find_objects, find_regions
from .scenes import SCENE_KINDS, Scene, SceneObject, plan_scene, simulate
from .steered import ACTIONS, SteeredScene, SteeredSimulation, begin_scene, reach_target, read_positions, steer


__all__ = [
    "ACTIONS",
    "MOTIONS",
    "PALETTE",
    "SCENE_KINDS",
    "Animation",
    "Group",
    "Order",
    "Region",
    "Scene",
    "SceneObject",
    "animate",
    "SteeredScene",
    "SteeredSimulation",
    "begin_scene",
    "count_objects",
    "draw_order",
    "find_objects",
    "find_regions",
    "plan_scene",
    "reach_target",
    "read_positions",
    "simulate",
    "steer",
    "write_motion_set",
]
