"""A stand-in for Discogs: its API, its dump site, and dumps that agree with both.

invent      what lasts of a record, from (kind, id, version)
answers     the API's JSON of it, with what is different at every request
elements    the dump's XML of it, in the serialisation of any era
world       which records exist, in which version, and which are gone
dump        a world's dump of any size, also as `python -m tests.discogs.dump`
quota       the rolling window in which the API counts requests
faults      what goes wrong, by chance or for chosen ids
journal     every request, with its time
loopback    a server in a thread
api, site   the two HTTP servers, together as `python -m tests.discogs`
"""
