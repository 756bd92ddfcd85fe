"""The storage of a registry: its layout, its TTL state, and the programs that put it right.

Knows nothing of Kubernetes: a person with a plain registry in a VM has the same disease.

    layout     pure    paths, names, digests, both ways
    state      pure    scheduler-state.json, parse and format
    expiry     pure    when what expires
    errors             the errors of all of these
    store              the seam: all input and output goes through it
    inventory          what lies on the storage
    marker, canary     whose storage it is; whether the scheduler deletes
    survey, leftovers  what is wrong with it: every class of leak
    quiet              whether a registry writes beneath us
    steps              changes as values, planned before the first is done
    audit, reseed, sweep, purge, migrate, prepare    programs
    keeper/            the sidecar
"""
