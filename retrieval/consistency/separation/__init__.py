"""How far pairs inside classes score above pairs across; which classes and images are confused."""
