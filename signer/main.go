// Command signer is the private container of the pod: the only one that holds
// the workload identity. It stores pictures in Blob Storage and signs links to
// them for the frontend, over the loopback interface alone.
package main

import (
	"os"

	"cats.example/shared/httpserver"
)

func main() {
	os.Exit(httpserver.Main(httpserver.Program{
		Name: name, About: about, Settings: &settings{}, Run: run,
		Command: doctorCommand,
	}))
}
