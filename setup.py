from pathlib import Path

from setuptools import find_packages, setup


setup(
    name="diffusers-videogpt",
    version="0.1.0",
    description="Video-GPT (next clip diffusion) as native Hugging Face diffusers components",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["diffusers_videogpt", "diffusers_videogpt.*"]),
    package_data={"diffusers_videogpt": ["assets/**/*"]},
    install_requires=[
        # torch 2.14 and later resolve to CUDA builds of several gigabytes where a CPU build of 2.13 is available.
        "torch>=2.9,<2.14",
        "diffusers>=0.42.1",
        "transformers>=5.0",
        "accelerate>=1.10",
        "peft>=0.17",
        "huggingface-hub>=1.0",
        "safetensors>=0.5",
        "numpy>=1.26",
        "pillow>=10.0",
        "av>=14.0",
    ],
    extras_require={
        "worlds": ["pymunk>=7.0", "pygame-ce>=2.5"],
        "train": [
            "datasets>=4.0",
            "torchdata>=0.11",
            "bitsandbytes>=0.45",
            "tensorboard>=2.15",
            "matplotlib>=3.8",
            "pyyaml>=6.0",
            "pymunk>=7.0",
            "pygame-ce>=2.5",
        ],
        "eval": ["scipy>=1.11", "pymunk>=7.0", "pygame-ce>=2.5"],
        "test": [
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "build>=1.2",
            "datasets>=4.0",
            "torchdata>=0.11",
            "bitsandbytes>=0.45",
            "tensorboard>=2.15",
            "matplotlib>=3.8",
            "pyyaml>=6.0",
            "psutil>=5.9",
            "scipy>=1.11",
            "pymunk>=7.0",
            "pygame-ce>=2.5",
        ],
    },
    entry_points={"console_scripts": ["videogpt=diffusers_videogpt.cli:main"]},
)
