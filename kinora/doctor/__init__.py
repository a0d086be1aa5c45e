"""What `kinora doctor` looks at: this machine, the processes of the data folder, the service, its servers."""
