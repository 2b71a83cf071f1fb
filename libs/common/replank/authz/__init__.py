"""May this subject do that to this object? The client of auth-cache, or of any server with OpenFGA's API.

Needs httpx and stamina (the extra ``authz``). `replank.authz.routes` is for FastAPI (the extra ``http``).
"""

from replank.authz.client import AuthzClient, AuthzRejected, Decision, Tuple

__all__ = ["AuthzClient", "AuthzRejected", "Decision", "Tuple"]
