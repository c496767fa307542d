"""The HTML report: any number of runs, benchmarks and ablations in one file that loads nothing."""
