// Command signer is the private container of the pod, the only one with the workload identity. It stores pictures in Blob Storage
// and signs URLs of them for the frontend, over the loopback interface only.
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
