"""How Phalanx is installed; what the tests ran with is in constraints.txt."""

from setuptools import find_packages, setup

EXTRAS = {
    "xgboost": ["xgboost-cpu>=3.0"],  # the same library as `xgboost` (GPU, 132 MB and NCCL); install one of the two, never both
    "ray": ["ray[train]>=2.60", "psutil>=6"],
    "deepspeed": ["deepspeed>=0.19,<0.20"],
    "horovod": ["horovod>=0.28.1"],
    "tune": ["optuna>=5", "pandas>=2.2", "plotly>=6"],
    "s3": ["s3fs>=2025.3"],
    "sklearn": [],  # scikit-learn is required anyway
    "wandb": ["wandb>=0.19"],
    "tracking": ["mlflow-skinny>=3", "tensorboard>=2.18"],
}
TEST = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "psutil>=6",
    "ruff>=0.9",
    "mypy>=1.14",
    "import-linter>=2.1",
    "types-PyYAML",
    "types-psutil",
    "moto[s3,server]>=5",
    "mkdocs-material>=9.5",
    "mkdocstrings-python>=2",
]

setup(
    name="phalanx-train",
    version="0.1.0",
    description="Managed training as a library: launch, train, survive, tune, publish, on any machine",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["phalanx", "phalanx.*"]),
    package_data={"phalanx": ["py.typed", "scripts/standins/**/*.py", "tracking/ui.html"]},
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "numba>=0.60",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        "pyarrow>=17",
        "fsspec>=2025.3",
        "pyyaml>=6",
        "rich>=13.7",
        "safetensors>=0.4.5",
        "threadpoolctl>=3.5",
        "typer>=0.15",
        "xxhash>=3.4",
        "zstandard>=0.22",
    ],
    extras_require={
        **EXTRAS,
        # horovod must be built against the installed torch, so pip alone cannot bring it
        "all": sorted({need for name, needs in EXTRAS.items() if name != "horovod" for need in needs}),
        "test": TEST,
    },
    entry_points={"console_scripts": ["phalanx = phalanx.cli:main"]},
)
