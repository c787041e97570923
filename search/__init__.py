"""The driver: studies, sampling, promotion, engines, pages, export."""
