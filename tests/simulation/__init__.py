"""Our real code under a seeded scheduler, against models of PostgreSQL and JetStream."""
