# One job per run, seed, benchmark and condition; it computes every variant that a table shows.
rule evaluate:
    input:
        lambda w: graph.inputs("evaluate", w),
    output:
        files("evaluate"),
    params:
        scale=scale_of,
        identity=lambda w: graph.identity("evaluate", w, device=device(evaluation_kind, w)),
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
        "{resources.setup}"
        "possam evaluate {wildcards.run} {wildcards.benchmark} --seed {wildcards.seed} "
        "--condition {wildcards.condition} --scale {params.scale} "
        "--device {resources.device} 2> >(tee {log} >&2)"


# SAM + CLIP without a training: one job per benchmark, whatever the seeds.
rule training_free:
    input:
        lambda w: graph.inputs("training_free", w),
    output:
        files("training_free"),
    params:
        scale=scale_of,
        identity=lambda w: graph.identity("training_free", w, device=device("evaluate", w)),
    threads: processors("evaluate", 1)
    resources:
        **asked("evaluate"),
    log:
        "results/{prefix}logs/training_free_{system}_{benchmark}.log",
    shell:
        "{resources.setup}"
        "possam evaluate {wildcards.system} {wildcards.benchmark} --scale {params.scale} "
        "--device {resources.device} 2> >(tee {log} >&2)"


# Predictions of a system that is not trained here; their content is part of the identity.
rule external:
    input:
        lambda w: graph.inputs("external", w),
    output:
        files("external"),
    params:
        scale=scale_of,
        identity=lambda w: graph.identity("external", w),
    log:
        "results/{prefix}logs/external_{external}_{benchmark}.log",
    threads: processors("convert", 1)
    resources:
        **asked("convert"),
    shell:
        "{resources.setup}"
        "possam evaluate {wildcards.external} {wildcards.benchmark} --scale {params.scale} "
        "--workers {resources.cpus_per_task} 2> >(tee {log} >&2)"
