"""The REST API: one file per resource, and the few that all of them share.

`edge` wraps every request, `guards` say who may call, `bodies` read what was sent, `faults` turn
refusals into problems, `routers` lists what exists, `openapi` describes it.
"""
