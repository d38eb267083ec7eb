package main

import (
	"context"
	"errors"
	"io"
	"os/signal"
	"syscall"
	"time"

	"cats.example/shared/httpserver"
	"cats.example/signer/internal/doctor"
	"cats.example/signer/internal/signing"
	"cats.example/signer/internal/storage"
)

var doctorCommand = httpserver.Command{
	Name: "doctor",
	Help: `signer doctor checks, with the signer's own environment, what the signer needs: the
settings, the federated token, its exchange for an access token, the user delegation key,
a put, a signed URL and the deletion of a test picture, with MAX_DIRECT_UPLOAD_SIZE a copy
of it, with OIDC_ISSUER the issuer of callers' tokens, and the clock. It listens on no port,
so it can run beside the signer, in the container of a pod:

  kubectl -n cats-api exec POD -c signer -- /signer doctor

During a rollout, check a new pod: k8s/doctor.sh chooses the newest. The report begins
with the pod, its version, client ID and tenant.

Each check is a line that begins with ok, warn, fail or skip; the lines below it tell what
to do. The doctor takes about a minute at most. The exit code is 0 if all checks passed,
otherwise 1. The report never contains a token or the signature of a URL.`,
	Run: runDoctor,
}

func runDoctor(ctx context.Context, environ []string, stdout io.Writer) int {
	// The doctor must delete its test picture even if its terminal or pipe is closed.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP)
	defer stop()
	signal.Ignore(syscall.SIGPIPE)
	if doctor.Run(ctx, doctorOptions(environ), stdout) {
		return 0
	}
	return 1
}

// doctorOptions returns the settings that can be used, and the errors with which the signer does not start or gets no token.
func doctorOptions(environ []string) doctor.Options {
	c, err := parse(environ)
	if c.validateURLs() != nil { // storage can be checked with other signed URLs
		c.Signing = signing.Settings{LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour}
		c.DirectUpload.MaxDirectUploadSize = 0
	}
	return doctor.Options{
		Faults:        errors.Join(err, c.Identity.Validate()),
		Identity:      c.Identity,
		Storage:       c.Storage,
		Signing:       c.Signing,
		DirectUploads: c.DirectUpload.MaxDirectUploadSize > 0,
		Callers:       c.Callers,
		Transport:     storage.NewTransport(),
	}
}
