"""The sidecar beside each registry: `pullthrough keep`.

The stock scheduler leaves things behind even when it works: manifest payloads, tag links, dangling
links, whatever was filled within 5 s of a kill, whatever failed to delete once. The keeper removes
what nothing can reach, and what is older than the ttl and has no entry; it reports, probes the
upstream, and watches the canary and the TTL state.

    settings   pure    the command line as a value
    survey             one walk: what lies there, and what of it looks wrong
    sweep      pure    which of it is due; `perform` looks once more and unlinks
    evidence   pure    what the TTL state proves, over several reads
    repair             a torn state that keeps the registry from starting
    upstream           whether the upstream answers
    watch              the canary, the registry's port
    report     pure    what the operator and people are told; metrics, server: how
    program            the loop

Promise while the registry serves: never a wrong or truncated body, nothing lost that a pull could
not get again, and a pull that fails in the instant of a deletion succeeds on its retry. So: one
named file at a time, never a directory; the link first and the data in a later pass, after a fresh
walk found no link to it; everything seen twice, unchanged, before it goes.
"""
