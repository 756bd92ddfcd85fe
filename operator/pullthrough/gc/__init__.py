"""Turning garbage collection on and off, for one member: what is observed, and the one thing to do next.

The procedure, in the order of the table (`gc.table`):

1. A member that is not there yet is created straight in the wanted mode: `prepare` covers all that lies on its storage.
2. Off: the member rolls with GC off; `prepare` sets the TTL state aside.
3. On: pending changes of image, series or template roll first, with the mode unchanged.
4. The migration Job runs beside the serving registry, on the member's node, and writes the finished TTL state as a file
   under its own uid. It deletes nothing. It fails, with the remedy, on what the roll would die of.
5. The registry's start needs its upstream, so the keeper's probe must be fresh at the moment of the roll.
6. The member rolls. Its pod template names the Job's uid; `prepare` installs that state and adds what came since.
7. Once the pod is ready the roll is verified. Until then a `prepare` or registry that exits non-zero three times takes
   the member back to GC off; after three such reverts in one generation a person is asked.

A failing Job costs nothing: the cache serves on. Everything here is pure.
"""
