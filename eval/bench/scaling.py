"""The cost model fitted, 1, 8 and 64 replicas simulated, and both held against a real run of two replicas.

Runs no model: it reads what other benchmarks have written to eval/results. See docs/scaling.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from eval.figures import RESULTS, report_result
from eval.scaling.cost import H200, LLAMA_8B, QWEN_7B, Shape, Work, decode, prefill
from eval.scaling.fit import summary
from eval.scaling.simulation import Service, Simulation, poisson, rounds, zipf_documents
from service.cluster.affinity import POLICIES, RandomChoice

REPLICAS = (1, 8, 64)
ZIPF = (0.0, 0.8, 1.2)
DOCUMENTS = 1000
LOAD = 0.6
"""Arrivals a second beside what the replicas could serve if no document were ever in a cache."""
QUESTIONS_PER_REPLICA = 400
SEEDS = range(20)


def predictions() -> list[dict[str, Any]]:
    """What an H200 would take at its two ceilings: times that no kernel of ours has been measured at yet."""
    rows = []
    for shape in (LLAMA_8B, QWEN_7B):
        for context in (8192, 32768, 131072):
            rows.append(_row(shape, f"dense prefill of {context}", prefill(shape, context)))
        for density in (0.1, 0.05):
            rows.append(_row(shape, f"prefill of 131072 at density {density}", prefill(shape, 131072, density=density)))
        for batch, context in ((1, 131072), (16, 131072), (16, 8192)):
            rows.append(_row(shape, f"decode step, {batch} × {context}", decode(shape, context, batch)))
        rows.append(_row(shape, "decode step, 1 × 131072, 4096 visited", decode(shape, 131072, visited=4096)))
        rows.append(_row(shape, "tree of 64 nodes behind 131072", decode(shape, 131072, nodes=64)))
    return rows


def _row(shape: Shape, what: str, work: Work) -> dict[str, Any]:
    """One prediction; `state` says that it is one."""
    return {"model": shape.name, "what": what, "seconds": H200.seconds(work), "state": "not yet measured"}


def grid(seed: int) -> list[dict[str, Any]]:
    """Hit rates and throughput under affinity and chance: replicas × skew, the load growing with the replicas."""
    read = H200.seconds(prefill(LLAMA_8B, 32768))
    service = Service(read, answer_s=0.25 * read, document_tokens=32768, cache_tokens=16 * 32768)
    rows = []
    for replicas in REPLICAS:
        rate = LOAD * replicas / (service.read_s + service.answer_s)
        for exponent in ZIPF:
            for policy in POLICIES:
                documents = zipf_documents(DOCUMENTS, exponent, seed)
                asked = poisson(documents, QUESTIONS_PER_REPLICA * replicas, rate, seed)
                found = Simulation(service, replicas, POLICIES[policy]()).run(asked)
                rows.append({"replicas": replicas, "zipf": exponent, "routing": policy, **found.figures()})
    return rows


def check(folder: Path = RESULTS) -> dict[str, Any] | None:
    """The simulation beside the real replicas of cluster.json; None where that has not been measured."""
    path = folder / "cluster.json"
    if not path.is_file():
        return None
    figures = json.loads(path.read_text())["figures"]
    found: dict[str, Any] = {"routing": [_check_routing(run) for run in figures.get("routing", [])]}
    if "throughput" in figures:
        found["throughput"] = _check_throughput(figures["throughput"])
    return found


def _check_routing(run: dict[str, Any]) -> dict[str, Any]:
    """Hits of the real replicas beside the mean of many simulations, whose replicas have other names each time."""
    service = Service(1.0, 0.1, 1, run["cached_documents_per_replica"])
    row: dict[str, Any] = {"replicas": run["replicas"], "questions": run["affinity"]["questions"]}
    for policy in ("affinity", "random"):
        simulated = []
        for seed in SEEDS:
            chosen = RandomChoice(seed) if policy == "random" else POLICIES[policy]()
            simulation = Simulation(service, run["replicas"], chosen, name=f"{seed}-")
            simulated.append(simulation.run_clients(1, rounds(run["documents"], run["rounds"], run["seed"])).hits)
        mean = sum(simulated) / len(simulated)
        row[policy] = {
            "measured_hits": run[policy]["hits"],
            "simulated_hits": mean,
            "simulated_range": [min(simulated), max(simulated)],
            "error_of_hit_rate": (mean - run[policy]["hits"]) / row["questions"],
        }
    return row


def _check_throughput(run: dict[str, Any]) -> dict[str, Any]:
    """Two replicas' requests a second from one's: nothing is cached, so a request takes what it took alone."""
    one = sorted(run["requests_per_s"]["1"])[len(run["requests_per_s"]["1"]) // 2]
    two = sorted(run["requests_per_s"]["2"])[len(run["requests_per_s"]["2"]) // 2]
    requests = run["last"]["2"]["requests"]
    service = Service(read_s=1 / one, answer_s=0.0, document_tokens=1, cache_tokens=0)
    simulation = Simulation(service, 2, POLICIES["affinity"]())
    found = simulation.run_clients(2 * run["clients_per_replica"], iter(range(requests)))
    return {
        "measured_requests_per_s": two,
        "simulated_requests_per_s": found.throughput,
        "error": found.throughput / two - 1,
    }


def run(seed: int = 1, folder: Path = RESULTS) -> dict[str, Any]:
    """Fit, predictions, grid, and the check against real replicas."""
    return {
        "cost_model": summary(folder),
        "h200": {"bytes_per_s": H200.bytes_per_s, "flops_per_s": H200.linear_flops_per_s, "rows": predictions()},
        "simulation": {
            "documents": DOCUMENTS,
            "load": LOAD,
            "cached_documents_per_replica": 16,
            "seed": seed,
            "rows": grid(seed),
        },
        "check": check(folder),
    }


def command(
    seed: Annotated[int, typer.Option(help="Of documents and arrivals.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Result file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Fit the cost model to committed results and simulate 1, 8 and 64 replicas."""
    report_result("scaling", run(seed), as_json=as_json, output=output)
