"""Reading one tensor of a cold model, without prefetching, must fetch little beyond that tensor."""

from __future__ import annotations

from bench.results import Result
from bench.workshop import plugin, published, workshop
from weightless import units
from weightless.demo.pack import pack_model
from weightless.demo.pod import Pod
from weightless.demo.registry import ModelRegistry
from weightless.demo.requirements import model_directory

TENSORS = (
    "encoder.layer.0.attention.self.query.bias",
    "encoder.layer.3.attention.self.query.weight",
    "encoder.layer.5.intermediate.dense.weight",
    "embeddings.word_embeddings.weight",
)


def measure() -> list[Result]:
    results: list[Result] = []
    packed = pack_model(model_directory())
    for number, name in enumerate(TENSORS):
        with workshop() as directory, ModelRegistry() as registry, Pod() as pod:
            packed.serve(registry, "bench/minilm", "v1")
            with (
                plugin(directory, f"tensor{number}") as node,
                published(node, "tensor", f"{registry.host}/bench/minilm:v1", prefetch="none") as target,
            ):
                own = int(pod.tensor(target / "model.safetensors", name)["bytes"])
                beyond = registry.statistics().bytes_sent - own
        results.append(
            Result(
                what=f"overfetch for {name} ({units.size(own)})",
                unit="share",
                samples=(beyond / packed.size,),
                target=0.05,
            )
        )
    return results
