"""Test vectors of the certificate format: docs/certificate_format.md says what is in them."""
