package main

import (
	"context"
	"errors"
	"io"
	"os/signal"
	"syscall"
	"time"

	"cats.example/shared/httpserver"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/doctor"
)

var doctorCommand = httpserver.Command{
	Name: "doctor",
	Help: `signer doctor checks, with the signer's own environment, what the signer needs: the
settings, the federated token, its exchange, the user delegation key, a put and a
link on a scratch blob, which it deletes again, with MAX_DIRECT_UPLOAD_SIZE a copy of it,
with OIDC_ISSUER the issuer of callers' tokens, and the clock. It listens on nothing,
so that it runs beside the signer, in the container of a pod that you name:

  kubectl -n cats-api exec POD -c signer -- /signer doctor

During a rollout, examine a new pod: k8s/doctor.sh chooses the newest. The report
begins with the pod, its version, client ID and tenant.

Each check is a line that begins with ok, warn, fail or skip; what to do stands
below. It takes about a minute at most. The exit code is 0 when nothing failed, 1
otherwise. Neither a token nor the signature of a link is printed.`,
	Run: runDoctor,
}

func runDoctor(ctx context.Context, environ []string, stdout io.Writer) int {
	// A terminal or a pipe that goes away must not leave a scratch blob behind.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP)
	defer stop()
	signal.Ignore(syscall.SIGPIPE)
	if doctor.Run(ctx, doctorOptions(environ), stdout) {
		return 0
	}
	return 1
}

// doctorOptions returns the settings as far as they can be used, and the errors with which the signer does not start or does
// not get a token.
func doctorOptions(environ []string) doctor.Options {
	c, err := parse(environ)
	if c.Storage.Validate() != nil { // storage can be checked with other links
		c.Storage.LinkTTL, c.Storage.LinkMaxTTL, c.Storage.LinkBaseURL = time.Hour, 24*time.Hour, ""
		c.Storage.MaxDirectUploadSize, c.Storage.ExistenceCacheTTL = 0, 0
	}
	return doctor.Options{
		Faults:    errors.Join(err, c.Identity.Validate()),
		Identity:  c.Identity,
		Storage:   c.Storage,
		Callers:   c.Callers,
		Transport: blobstore.NewTransport(),
	}
}
