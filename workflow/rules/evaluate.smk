# One job for each (run, seed, benchmark, condition), with all variants that tables ask for there.


def evaluation_kind(w):
    """A clock tells the truth only where nothing else runs."""
    timed = plan.is_timed(plan.scale_of(w.prefix), w.benchmark)
    return "timing" if timed else "evaluate"


rule evaluate:
    input:
        lambda w: plan.evaluation_inputs(w.prefix, w.run, w.seed, w.benchmark, w.condition),
    output:
        EVALUATION,
    params:
        scale=lambda w: plan.scale_of(w.prefix),
        identity=lambda w: plan.identity(
            "evaluate",
            plan.scale_of(w.prefix),
            run=w.run,
            seed=w.seed,
            benchmark=w.benchmark,
            condition=w.condition,
        ),
    threads:
        processors(
            evaluation_kind,
            lambda w: workflow.cores if evaluation_kind(w) == "timing" else 1,
        )
    resources:
        **asked(evaluation_kind),
    log:
        "results/{prefix}logs/evaluate_{run}_seed{seed}_{benchmark}_{condition}.log",
    shell:
        "possam evaluate {wildcards.run} {wildcards.benchmark} --seed {wildcards.seed} "
        "--condition {wildcards.condition} --scale {params.scale} "
        "--device {resources.device} 2> >(tee {log} >&2)"


# Predictions of a system that is not trained here; their content is part of the identity.
rule external:
    input:
        lambda w: plan.external_inputs(w.prefix, w.external, w.benchmark),
    output:
        EXTERNAL_EVALUATION,
    params:
        scale=lambda w: plan.scale_of(w.prefix),
        identity=lambda w: plan.identity(
            "external", plan.scale_of(w.prefix), external=w.external, benchmark=w.benchmark
        ),
    log:
        "results/{prefix}logs/external_{external}_{benchmark}.log",
    threads: processors("convert", 1)
    resources:
        **asked("convert"),
    shell:
        "possam evaluate {wildcards.external} {wildcards.benchmark} --scale {params.scale} "
        "--workers {threads} 2> >(tee {log} >&2)"
