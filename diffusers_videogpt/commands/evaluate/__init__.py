"""`videogpt evaluate …`: one file a benchmark."""

from .autoencoder import add_autoencoder_benchmark
from .fvd import add_fvd_benchmark
from .physics_box import add_physics_box_benchmark
from .physics_iq import add_physics_iq_benchmark
from .probe import add_probe_benchmark
from .retrieval import add_retrieval_benchmark
from .segmentation import add_segmentation_benchmark
from .videos import add_videos_benchmark


def add_evaluate_command(commands) -> None:
    command = commands.add_parser("evaluate", help="score a model")
    benchmarks = command.add_subparsers(dest="benchmark", required=True)
    add_physics_box_benchmark(benchmarks)
    add_videos_benchmark(benchmarks)
    add_fvd_benchmark(benchmarks)
    add_probe_benchmark(benchmarks)
    add_retrieval_benchmark(benchmarks)
    add_physics_iq_benchmark(benchmarks)
    add_segmentation_benchmark(benchmarks)
    add_autoencoder_benchmark(benchmarks)
