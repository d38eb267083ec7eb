// Go's multipart reader uses 25 bytes of memory for each byte of a short line in a part header, so it accepts only 64 lines.
//go:debug multipartmaxheaders=64

// Command frontend is the public container of the pod. It serves the public HTTP API and forwards requests to the signer over
// the loopback interface. It has no credential, links no Azure code, and does not start where it could obtain a token.
package main

import (
	"os"

	"cats.example/shared/httpserver"
)

func main() {
	os.Exit(httpserver.Main(httpserver.Program{Name: name, About: about, Settings: &settings{}, Run: run}))
}
