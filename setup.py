from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist


class SourcesAlone(sdist):
    """Leaves out tests/, of which setuptools would take only those of a certain name, that can't run alone."""

    def make_distribution(self):
        self.filelist.prune("tests")
        super().make_distribution()


# What each part of the package needs beside `install_requires`; of these `.ci/lowest` tests the bounds of EVAL, ENV and DEMO.
WORLDS = ["pymunk>=7.0", "pygame-ce>=2.5"]
TRAIN = [
    "datasets>=4.0",
    "torchdata>=0.11",
    "bitsandbytes>=0.45.5",
    "tensorboard>=2.18",
    "matplotlib>=3.9",
    "pyyaml>=6.0",
    *WORLDS,
]
EVAL = [
    "scipy>=1.13",
    "torchmetrics>=1.4",
    "opencv-python-headless>=4.13.0.90",  # before, it read the colours of BT.709 videos wrong, which Physics-IQ then scored
    "matplotlib>=3.9",
    "datasets>=4.0",
    *WORLDS,
]
ENV = ["gymnasium>=1.1", *WORLDS]
SEARCH = ["datasets>=4.0", "faiss-cpu>=1.9"]
DEMO = ["gradio>=6.0"]
QUANTIZE = ["torchao>=0.17", "bitsandbytes>=0.45.5"]
# What only the tests use.
TOOLS = [
    "pytest>=8.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.12",
    "build>=1.2",
    "psutil>=5.9",
    "playwright>=1.50",
]


setup(
    name="diffusers-videogpt",
    version="0.1.0",
    description="Video-GPT (next clip diffusion) as native Hugging Face diffusers components",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["diffusers_videogpt", "diffusers_videogpt.*"]),
    package_data={"diffusers_videogpt": ["assets/**/*"]},
    # Lower bounds are what `.ci/lowest` installs and tests. PyTorch has no upper bound: a user's newer one stays.
    install_requires=[
        "torch>=2.9",
        "diffusers>=0.42.1",
        "transformers>=5.3",
        "accelerate>=1.10",
        "peft>=0.20",  # before, hot swapping a LoRA of a lower rank gave up the room for a higher one
        "huggingface-hub>=1.32",
        "safetensors>=0.8",
        "numpy>=2.0",  # pyarrow, which `datasets` brings, asks for it where it is imported, not where it is installed
        "pillow>=10.1",
        "av>=17.0",
    ],
    extras_require={
        "worlds": WORLDS,
        "train": TRAIN,
        "eval": EVAL,
        "env": ENV,
        "search": SEARCH,
        "demo": DEMO,
        "quantize": QUANTIZE,
        # Each requirement once, though several extras have it.
        "test": list(dict.fromkeys(TOOLS + TRAIN + EVAL + ENV + SEARCH + DEMO + QUANTIZE)),
    },
    cmdclass={"sdist": SourcesAlone},
    entry_points={"console_scripts": ["videogpt=diffusers_videogpt.commands.main:main"]},
)
