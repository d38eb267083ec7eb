// A short line in the header of a form's part takes 25 times its length of memory, so Go's multipart reader accepts 64.
//go:debug multipartmaxheaders=64

// Command frontend is the public container of the pod: it speaks HTTP with
// strangers and forwards to the signer over the loopback interface. It holds no
// credential, links no Azure code, and does not start where it could get a token.
package main

import (
	"os"

	"cats.example/shared/httpserver"
)

func main() {
	os.Exit(httpserver.Main(httpserver.Program{Name: name, About: about, Settings: &settings{}, Run: run}))
}
