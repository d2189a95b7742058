"""Systems of atoms: structures, padded batches, levels of fields, reductions by system, observables."""
