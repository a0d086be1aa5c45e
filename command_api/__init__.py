"""The write side and the HTTP edge."""
