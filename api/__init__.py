"""The HTTP service: the AWS runtime and control plane, native additions, health."""
