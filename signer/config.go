package main

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"

	"cats.example/shared/config"
	"cats.example/shared/httpserver"
	"cats.example/shared/picture"
	"cats.example/shared/telemetry"
	"cats.example/signer/internal/auth"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/directupload"
	"cats.example/signer/internal/doctor"
	"cats.example/signer/internal/identity"
	"cats.example/signer/internal/signing"
	"cats.example/signer/internal/storage"
)

const (
	name  = "signer"
	about = "signer stores pictures in Azure Blob Storage and signs URLs of them, for the frontend on the loopback interface.\n" + telemetry.TracesHelp +
		"\n\nCommand doctor: checks settings, token, exchange, key, put, link, copy, callers and clock, and tells how to fix what does not work"
)

type settings struct {
	Storage      storage.Settings
	Signing      signing.Settings
	DirectUpload directupload.Settings
	Pictures     blobstore.Settings
	Identity     identity.Settings

	ListenAddress string `env:"LISTEN_ADDRESS" envDefault:"127.0.0.1:8081" help:"address for the frontend; loopback only"`
	OpsAddress    string `env:"OPS_ADDRESS" envDefault:":8091" help:"address of /metrics, /livez and /readyz"`

	Callers auth.Settings

	picture.Limits
	httpserver.Settings
}

// parse reads the settings and returns all their validation errors, joined. Settings of the identity are not validated: the
// signer starts without an identity, is not ready, and logs why, so that "signer doctor" can run in its container. If a setting
// cannot be read, parse validates none, but returns the others.
func parse(environ []string) (settings, error) {
	var c settings
	err := config.Parse(&c, environ)
	c.Storage.AccountURL = strings.TrimSuffix(c.Storage.AccountURL, "/")
	c.Signing.LinkBaseURL = strings.TrimSuffix(c.Signing.LinkBaseURL, "/")
	if err != nil {
		return c, err
	}
	host, _, err := net.SplitHostPort(c.ListenAddress)
	ip, _ := netip.ParseAddr(host) // the zero address is no loopback address
	return c, errors.Join(c.Callers.Validate(), c.Limits.Validate(), c.Settings.Validate(), c.Storage.Validate(),
		c.Signing.Validate(), c.DirectUpload.Validate(), c.Pictures.Validate(),
		config.Require(c.MaxPictureSize <= blobstore.MaxPicture,
			"MAX_PICTURE_SIZE is %v: it can be at most %v; clients upload larger pictures directly to storage, see MAX_DIRECT_UPLOAD_SIZE",
			c.MaxPictureSize, picture.Size(blobstore.MaxPicture)),
		config.Require(c.Identity.Credential == identity.WorkloadIdentity || c.Identity.Credential == identity.Default,
			"CREDENTIAL is %q: want %s or %s", c.Identity.Credential, identity.WorkloadIdentity, identity.Default),
		config.Require(err == nil && (host == "localhost" || ip.IsLoopback()),
			"LISTEN_ADDRESS is %q: want a loopback address such as 127.0.0.1:8081; whoever reaches this port can use the identity", c.ListenAddress),
	)
}

// doctorOptions returns the settings that can be used, and the errors with which the signer does not start or gets no token.
func doctorOptions(environ []string) doctor.Options {
	c, err := parse(environ)
	if errors.Join(c.Signing.Validate(), c.DirectUpload.Validate()) != nil { // storage can be checked with other signed URLs
		c.Signing = signing.Settings{LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour}
		c.DirectUpload.MaxDirectUploadSize = 0
	}
	return doctor.Options{
		Faults: errors.Join(err, c.Identity.Validate()), Identity: c.Identity, Storage: c.Storage, Signing: c.Signing,
		DirectUploads: c.DirectUpload.MaxDirectUploadSize > 0, Callers: c.Callers, Transport: storage.NewTransport(),
	}
}
