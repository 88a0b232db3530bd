# One job per run and seed. Checkpoints and weights lie beside run.json, undeclared: Snakemake removes declared
# outputs before it reruns a rule, and a killed training must find its checkpoints.


rule train:
    input:
        lambda w: graph.inputs("train", w),
    output:
        files("train"),
    params:
        scale=scale_of,
        identity=lambda w: graph.identity("train", w, device=device("train", w)),
    log:
        "results/{prefix}logs/train_{run}_seed{seed}.log",
    # A resource, because it is no reason to train again.
    resources:
        beside=beside,
        local_gpus=lambda w: local_gpus("train", w),
    # The longest jobs start first; evaluations run beside the last trainings.
    priority: 1
    # tee -i: after Ctrl-C, a command that waits for a SLURM job still prints what keeps running.
    shell:
        "possam train {wildcards.run} --seed {wildcards.seed} --scale {params.scale} "
        f"--launcher {launcher} {'' if launcher == 'slurm' else f'--device {here} '}"
        "{resources.beside} "
        "2> >(tee -i {log} >&2)"
