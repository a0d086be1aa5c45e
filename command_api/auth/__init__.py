"""Who somebody is: signing up, logging in, and the tokens that say so afterwards."""
