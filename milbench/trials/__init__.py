"""Trials: one aggregator, one fold, one seed. `spec` says which, `run` does it, `store` keeps the result, `plan` lists them."""
