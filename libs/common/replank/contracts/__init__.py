"""The payloads of our services' events: the only thing that services share about each other.

One module a service that emits, `replank.contracts.schema` for one. Import the modules whose events you append or
handle; importing registers their contracts (`replank.events.contract`).
"""
