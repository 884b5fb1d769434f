"""Proof that a run does not depend on its layout: the same steps by one plain process and by ranks, compared."""
