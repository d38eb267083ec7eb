package blobstore

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/storagetest"
)

// The response to the first attempt is lost, and another client may have replaced its picture since.
func TestRejectedRepetitionHasAnUnknownOutcome(t *testing.T) {
	for _, size := range []int{1000, 5 * mib} { // one Put Blob, and a commit of blocks
		bubble(t, func(t *testing.T, f *fixture) {
			f.server.Put("x/cat", "another", "image/png")
			attempts := 0
			f.server.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
				if storagetest.Is("PUT block")(r) || r.Method == http.MethodHead {
					return false
				}
				if attempts++; attempts%2 == 1 {
					panic(http.ErrAbortHandler)
				}
				storagetest.Reject(w, http.StatusPreconditionFailed, "ConditionNotMet")
				return true
			})
			for call, err := range map[string]error{
				"put":    f.put(t, storagetest.PNG(size), unknown),
				"delete": f.Delete(t.Context(), f.x, signerapi.Preconditions{}),
			} {
				if !errors.Is(err, apierror.ErrPreconditionFailed) || apierror.AsError(err).Outcome != apierror.OutcomeUnknown {
					t.Errorf("%s of %d bytes: %v, outcome %q", call, size, err, apierror.AsError(err).Outcome)
				}
			}
		}, withRetries)
	}
}

// Storage responds after half of the body, and then reads on, or closes the connection.
func TestEarlyResponseLeavesTheOldPicture(t *testing.T) {
	for name, c := range map[string]struct {
		opts         signerapi.PutOptions
		status       int
		code, header string
		want         error
		outcome      apierror.Outcome
	}{
		"rejection":            {sized(mib), 401, "InvalidAuthenticationInfo", "", apierror.ErrIdentityUnavailable, ""},
		"throttling":           {sized(mib), 503, "ServerBusy", "Retry-After: 120\r\n", apierror.ErrThrottled, ""},
		"success":              {sized(mib), 201, "", "ETag: \"0x1\"\r\n", apierror.ErrStorageUnavailable, apierror.OutcomeUnknown},
		"success of the block": {inForm(mib, 50), 201, "", "ETag: \"0x1\"\r\n", apierror.ErrStorageUnavailable, ""},
	} {
		for _, closes := range []bool{false, true} {
			bubble(t, func(t *testing.T, f *fixture) {
				f.buffers.large.TryAcquire(bufferCount) // so that the form is streamed
				f.server.Put("x/cat", "old", "image/png")
				f.server.SetEarly(func(w http.ResponseWriter, r *http.Request) bool {
					if r.Method != http.MethodPut {
						return false
					}
					_, _ = io.CopyN(io.Discard, r.Body, mib/2)
					conn := storagetest.Hijack(t, w)
					if !closes {
						storagetest.WriteRaw(conn, c.status, c.code, c.header)
						return true
					}
					storagetest.WriteRaw(conn, c.status, c.code, c.header+"Connection: close\r\n")
					time.Sleep(time.Second) // the client handles the response before it fails to write
					_ = conn.Close()
					return true
				})
				err := f.put(t, storagetest.PNG(mib), c.opts)
				time.Sleep(2 * time.Second) // the handler ends
				e := apierror.AsError(err)
				waits := c.status != 503 || e.RetryAfter == 2*time.Minute
				if !errors.Is(err, c.want) || e.Outcome != c.outcome || !waits || f.server.Blob("x/cat").Content != "old" {
					t.Errorf("%s, closes %t: %v, outcome %q, after %v; want %v", name, closes, err, e.Outcome, e.RetryAfter, c.want)
				}
			}, withRetries)
		}
	}
}

// A client that disconnects after the last byte does not decide whether the picture is stored.
func TestPutOutlivesItsClient(t *testing.T) {
	for _, size := range []int{1000, mib} {
		bubble(t, func(t *testing.T, f *fixture) {
			ctx, cancel := context.WithCancel(t.Context())
			f.server.SetFault(func(http.ResponseWriter, *http.Request) bool {
				cancel()
				time.Sleep(time.Second)
				return false
			})
			if _, err := f.Put(ctx, f.x, strings.NewReader(storagetest.PNG(size)), sized(size)); err != nil {
				t.Error(err)
			}
		})
	}
}
