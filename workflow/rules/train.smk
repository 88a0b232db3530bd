# One job a run and seed. Checkpoints and weights lie beside run.json, undeclared: Snakemake removes declared
# outputs before it reruns a rule, and a killed training must find its checkpoints.


rule train:
    input:
        lambda w: plan.training_inputs(w.prefix, w.run),
    output:
        RUN,
    params:
        scale=lambda w: plan.scale_of(w.prefix),
        identity=lambda w: plan.identity("train", plan.scale_of(w.prefix), run=w.run, seed=w.seed),
    log:
        "results/{prefix}logs/train_{run}_seed{seed}.log",
    # Longest first: evaluations then fill what is left of the last trainings' time.
    priority: 1
    # tee -i: after Ctrl-C, a command that waits for a job says what keeps running.
    shell:
        "possam train {wildcards.run} --seed {wildcards.seed} --scale {params.scale} "
        f"--launcher {launcher} "
        "2> >(tee -i {log} >&2)"
