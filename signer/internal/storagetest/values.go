package storagetest

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"cats.example/shared/picture"
	"cats.example/shared/signerapi"
)

// Credential is a credential with a token, unless Err is set. It counts the calls of Renew.
type Credential struct {
	Err     error
	mu      sync.Mutex
	renewed int
}

// GetToken implements [azcore.TokenCredential].
func (c *Credential) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "t", ExpiresOn: time.Now().Add(time.Hour)}, c.Err
}

// Renew counts a call.
func (c *Credential) Renew() { c.mu.Lock(); defer c.mu.Unlock(); c.renewed++ }

// Renewed returns the number of calls of Renew.
func (c *Credential) Renewed() int { c.mu.Lock(); defer c.mu.Unlock(); return c.renewed }

// Log is a log that a test reads while other goroutines write it.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements [io.Writer].
func (l *Log) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }

// String returns what was written.
func (l *Log) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

// User returns the user name.
func User(t testing.TB, name string) signerapi.User {
	t.Helper()
	u, err := signerapi.ParseUser(name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// PNG returns n bytes, at least 24, that begin like a PNG of one pixel.
func PNG(n int) string {
	return ("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01" + strings.Repeat("0123456789abcdef!", n/17+2))[:n]
}

// Limits are limits that PNG fits into.
var Limits = picture.Limits{MaxPictureSize: 32 << 20, AcceptedTypes: []string{"image/png", "image/gif"}, MaxPixels: 1000}
