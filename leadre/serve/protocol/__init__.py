"""OpenRTB and consent: bytes to plain types and back."""
