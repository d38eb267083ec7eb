// Command signer is the private container of the pod: the only one that holds
// the workload identity. It stores pictures in Blob Storage and signs links to
// them for the frontend, over the loopback interface alone.
package main

import (
	"os"

	"cats.example/shared/service"
)

func main() {
	os.Exit(service.Main(service.Program{
		Name: name, About: about, Settings: &config{}, Run: run,
		Command: doctorCommand,
	}))
}
