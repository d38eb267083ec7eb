package blobstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

// uploads is a container of staged blobs that are listed in pages, and deleted by their ETags.
type uploads struct {
	t     *testing.T
	names []string

	mu     sync.Mutex
	etags  map[string]string // as listed
	blocks map[string]bool   // uncommitted blocks
	leased map[string]bool
	broken map[string]int // status of a DELETE
	before func(name string)
}

func newUploads(t *testing.T, n int) *uploads {
	u := &uploads{t: t, etags: map[string]string{}, blocks: map[string]bool{}, leased: map[string]bool{}, broken: map[string]int{}}
	for i := range n {
		name := fmt.Sprintf("%s%d-%032x", StagedPrefix, 1_700_000_000+i, i)
		u.names, u.etags[name] = append(u.names, name), fmt.Sprintf(`"0x%d"`, i)
	}
	return u
}

// store returns a store over the container.
func (u *uploads) store(log io.Writer) *Store {
	s, _, _ := newStore(u.t, func(o *Options) {
		o.Transport = transporter(func(r *http.Request) (*http.Response, error) {
			w := httptest.NewRecorder()
			u.serve(w, r)
			resp := w.Result()
			resp.Request = r
			return resp, r.Context().Err()
		})
	})
	s.log, s.retries = slog.New(slog.NewTextHandler(log, nil)), -1
	return s
}

func (u *uploads) serve(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/cats/")
	if u.before != nil && r.Method != http.MethodGet {
		u.before(r.Method + " " + name)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	etag, there := u.etags[name]
	there = there && !u.blocks[name]
	condition := r.Header.Get("If-Match")
	switch {
	case r.Method == http.MethodGet:
		q := r.URL.Query()
		at, _ := strconv.Atoi(q.Get("marker"))
		size, _ := strconv.Atoi(q.Get("maxresults"))
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprint(w, "<EnumerationResults><Blobs>")
		for _, name := range u.names[at:min(at+size, len(u.names))] {
			if etag, ok := u.etags[name]; ok {
				fmt.Fprintf(w, "<Blob><Name>%s</Name><Properties><Etag>%s</Etag></Properties></Blob>", name, strings.Trim(etag, `"`))
			}
		}
		fmt.Fprint(w, "</Blobs>")
		if at += size; at < len(u.names) {
			fmt.Fprintf(w, "<NextMarker>%d</NextMarker>", at)
		}
		fmt.Fprint(w, "</EnumerationResults>")
	case r.Method == http.MethodPut && r.URL.Query().Get("comp") == "":
		switch create := r.Header.Get("If-None-Match") == "*"; {
		case !create && r.Header.Get("If-Unmodified-Since") != "Thu, 01 Jan 1970 00:00:00 GMT":
			u.t.Errorf("an unconditional PUT of %s", name)
		case create && (there || u.blocks[name] && etag != ""): // Azurite takes blocks for a blob
			refuse(w, http.StatusConflict, "BlobAlreadyExists")
			return
		case there:
			refuse(w, http.StatusPreconditionFailed, "ConditionNotMet")
			return
		}
		u.etags[name], u.blocks[name] = `"0xempty"`, false
		w.Header().Set("ETag", u.etags[name])
		w.WriteHeader(http.StatusCreated)
	case condition == "":
		u.t.Errorf("an unconditional %s of %s", r.Method, name)
	case !there && !u.blocks[name]:
		refuse(w, http.StatusNotFound, "BlobNotFound")
	case !there || condition != etag: // Azurite answers so for blocks
		refuse(w, http.StatusPreconditionFailed, "ConditionNotMet")
	case r.Method == http.MethodPut: // lease
		delete(u.leased, name)
		w.WriteHeader(http.StatusAccepted)
	case u.broken[name] != 0:
		refuse(w, u.broken[name], "Broken")
	case u.leased[name]:
		refuse(w, http.StatusPreconditionFailed, "LeaseIdMissing")
	default:
		delete(u.etags, name)
		w.WriteHeader(http.StatusAccepted)
	}
}

func TestSweepDeletesThousandsInParallel(t *testing.T) {
	const n = 3000
	u := newUploads(t, n)
	var mu sync.Mutex
	inFlight, most := 0, 0
	full := make(chan struct{})
	u.before = func(string) {
		mu.Lock()
		inFlight++
		if most = max(most, inFlight); inFlight == sweepParallel {
			select {
			case <-full:
			default:
				close(full)
			}
		}
		mu.Unlock()
		select { // the first ones wait for each other
		case <-full:
		case <-time.After(5 * time.Second):
		}
		mu.Lock()
		inFlight--
		mu.Unlock()
	}
	s := u.store(io.Discard)
	if err := s.removeAbandoned(t.Context()); err != nil {
		t.Fatal(err)
	}
	if most != sweepParallel || len(u.etags) > 0 {
		t.Errorf("%d were deleted at once, and %d are left", most, len(u.etags))
	}
	if got := testutil.ToFloat64(s.metrics.unstaged.WithLabelValues(removedAbandoned)); got != n {
		t.Errorf("%v were counted", got)
	}
}

func TestSweepGoesOnAfterErrors(t *testing.T) {
	u := newUploads(t, 1200)
	var failing []string
	for i := 0; i < len(u.names); i += 300 {
		u.broken[u.names[i]] = []int{403, 409, 404, 500}[i/300]
		failing = append(failing, u.names[i])
	}
	s := u.store(io.Discard)
	if err := s.removeAbandoned(t.Context()); err == nil {
		t.Error("no error")
	}
	for _, name := range failing {
		if u.etags[name] == "" {
			t.Errorf("%s is gone", name)
		}
	}
	if len(u.etags) != len(failing) {
		t.Errorf("%d are left", len(u.etags))
	}
	u.broken = nil
	if err := s.removeAbandoned(t.Context()); err != nil || len(u.etags) > 0 {
		t.Errorf("the next sweep: %v, and %d are left", err, len(u.etags))
	}
}

func TestSweepSparesLaterVersions(t *testing.T) {
	u := newUploads(t, 9)
	name := func(i int) string { return u.names[i] }
	u.etags[name(1)], u.etags[name(2)] = "", "" // blocks without an ETag, as Azure lists them
	u.blocks[name(1)], u.blocks[name(2)], u.blocks[name(3)], u.blocks[name(6)] = true, true, true, true
	u.leased[name(4)], u.leased[name(5)] = true, true
	var done sync.Map
	u.before = func(request string) {
		if _, again := done.LoadOrStore(request, nil); again {
			return
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		switch request {
		case "DELETE " + name(0), "PUT " + name(2), "DELETE " + name(3), "PUT " + name(5): // the PUT of 5 breaks the lease
			_, changed, _ := strings.Cut(request, " ")
			u.etags[changed], u.blocks[changed] = `"0xlater"`, false
		}
	}
	var log logBuffer
	s := u.store(&log)
	if err := s.removeAbandoned(t.Context()); err != nil || log.String() != "" {
		t.Errorf("%v, and the log has %s", err, log.String())
	}
	for i, upload := range u.names {
		spared := i == 0 || i == 2 || i == 3 || i == 5
		if etag := u.etags[upload]; (etag == `"0xlater"`) != spared || !spared && etag != "" {
			t.Errorf("upload %d has the ETag %q", i, etag)
		}
	}
	if got := testutil.ToFloat64(s.metrics.unstaged.WithLabelValues(removedAbandoned)); got != 5 {
		t.Errorf("%v were counted", got)
	}
}

func TestSweepEndsWithItsContext(t *testing.T) {
	u := newUploads(t, 1200)
	var log logBuffer
	s := u.store(&log)
	ctx, cancel := context.WithCancel(t.Context())
	u.before = func(string) { cancel() }
	s.sweep(ctx)
	if deleted := 1200 - len(u.etags); deleted > sweepParallel || log.String() != "" {
		t.Errorf("%d were deleted after the end of its context; the log has %s", deleted, log.String())
	}
}

func TestSweepSurvivesAnAnswerWithoutListing(t *testing.T) {
	for _, body := range []string{"", "<EnumerationResults/>", "<html>proxy</html>"} {
		s, back, _ := newStore(t, nil)
		s.retries = -1
		back.fault = func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "application/xml")
			_, _ = io.WriteString(w, body)
			return true
		}
		_ = s.removeAbandoned(t.Context()) // an error or none, but no panic
	}
}

// committing returns a store and its storage with a staged PNG, and the ID of its upload.
func committing(t *testing.T) (s *Store, back *storage, id, path string) {
	t.Helper()
	s, back, _ = withKey(t, func(o *Options) { o.MaxDirectUploadSize = MaxDirectUploadSize })
	s.retries = -1
	content := pngOf(100)
	upload := newTicket(s.now(), int64(len(content)))
	path = "/cats/" + upload.blobName(user(t, "mia"))
	back.blobs[path] = content
	return s, back, upload.id, path
}

func TestCommitNamesStatesOfItsSource(t *testing.T) {
	const archive, headers = "the uploaded blob is in the archive tier", "no x-ms header besides x-ms-blob-type"
	for _, c := range []struct {
		method, comp, code, source string
		want                       *apierror.Error
		detail                     string
	}{
		{"HEAD", "", "BlobUsesCustomerSpecifiedEncryption", "", apierror.ErrRejectedByStorage, headers},
		{"GET", "", "BlobArchived", "", apierror.ErrArchived, archive},
		{"GET", "", "BlobBeingRehydrated", "", apierror.ErrArchived, archive},
		{"GET", "", "MadeUp", "", apierror.ErrRejectedByStorage, headers},
		{"PUT", "block", "CannotVerifyCopySource", "", apierror.ErrArchived, archive},
		{"PUT", "block", "CannotVerifyCopySource", "BlobArchived", apierror.ErrArchived, archive},
		{"PUT", "block", "CannotVerifyCopySource", "BlobUsesCustomerSpecifiedEncryption", apierror.ErrRejectedByStorage, headers},
		{"PUT", "block", "BlobArchived", "", apierror.ErrArchived, "the stored picture is in the archive tier"},
		{"PUT", "block", "BlobBeingRehydrated", "", apierror.ErrArchived, "the stored picture is in the archive tier"},
		{"PUT", "block", "InvalidBlobType", "", apierror.ErrRejectedByStorage, "the current state of the blob"},
		{"PUT", "blocklist", "BlobArchived", "", apierror.ErrArchived, "the stored picture is in the archive tier"},
		{"PUT", "blocklist", "BlobImmutableDueToPolicy", "", apierror.ErrImmutable, ""},
		{"PUT", "blocklist", "LeaseIdMissing", "", apierror.ErrLeased, ""},
	} {
		s, back, id, path := committing(t)
		back.fault = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != c.method || r.URL.Query().Get("comp") != c.comp || c.comp == "" && r.URL.Path != path {
				return false
			}
			if c.source != "" {
				w.Header().Set("X-Ms-Copy-Source-Error-Code", c.source)
			}
			refuse(w, http.StatusConflict, c.code)
			return true
		}
		_, err := s.CommitUpload(t.Context(), user(t, "mia"), id, signerapi.CommitOptions{})
		if !errors.Is(err, c.want) || !strings.Contains(apierror.AsError(err).Detail, c.detail) {
			t.Errorf("%+v: %v, %q", c, err, apierror.AsError(err).Detail)
		}
		if _, ok := back.blobs[path]; !ok {
			t.Errorf("%+v: the staged blob was deleted", c)
		}
		back.fault = nil
		if _, err := s.CommitUpload(t.Context(), user(t, "mia"), id, signerapi.CommitOptions{}); err != nil {
			t.Errorf("%+v, and again: %v", c, err)
		}
	}
}

// Another replica may have committed the same upload before the picture got that state.
func TestCommitFindsThePictureOfAnotherReplica(t *testing.T) {
	for _, code := range []string{"ConditionNotMet", "LeaseIdMissing", "BlobImmutableDueToPolicy", "BlobArchived", "MadeUp"} {
		s, back, id, path := committing(t)
		lists := 0
		back.fault = func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case r.URL.Query().Get("comp") == "blocklist":
				lists++
				refuse(w, map[bool]int{true: 412, false: 409}[code == "ConditionNotMet"], code)
			case r.Method == http.MethodHead && lists > 0 && !strings.Contains(r.URL.Path, StagedPrefix):
				w.Header().Set("X-Ms-Meta-Catsupload", strings.TrimPrefix(path, "/cats/")+` "0x1"`)
				w.Header().Set("ETag", `"0x2"`)
			default:
				return false
			}
			return true
		}
		info, err := s.CommitUpload(t.Context(), user(t, "mia"), id, signerapi.CommitOptions{})
		if err != nil || info.ETag != `"0x2"` {
			t.Errorf("%s: %+v, %v", code, info, err)
		}
	}
}

func TestCommitDeletesOnlyWhatCanNeverBeCommitted(t *testing.T) {
	wrong := make([]byte, 16)
	for what, c := range map[string]struct {
		content string
		opts    signerapi.CommitOptions
		fault   func(http.ResponseWriter, *http.Request) bool
		want    error
		gone    bool
	}{
		"stored":              {pngOf(100), signerapi.CommitOptions{}, nil, nil, true},
		"text":                {strings.Repeat("x", 100), signerapi.CommitOptions{}, nil, apierror.ErrUnsupportedMediaType, true},
		"too many pixels":     {"GIF89a\xff\xff\xff\xff\x00\x00\x00" + strings.Repeat("x", 87), signerapi.CommitOptions{}, nil, apierror.ErrTooLarge, true},
		"another content_md5": {pngOf(100), signerapi.CommitOptions{MD5: wrong}, nil, apierror.ErrDigestMismatch, false},
		"another MD5, as storage finds": {pngOf(100), signerapi.CommitOptions{}, func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("comp") == "block" {
				refuse(w, http.StatusBadRequest, "Md5Mismatch")
				return true
			}
			return false
		}, apierror.ErrDigestMismatch, false},
		"failed precondition": {pngOf(100), signerapi.CommitOptions{Preconditions: signerapi.Preconditions{IfMatch: `"0x9"`}}, nil, apierror.ErrPreconditionFailed, false},
		"another size":        {pngOf(99), signerapi.CommitOptions{}, nil, apierror.ErrIncomplete, false},
		"outage": {pngOf(100), signerapi.CommitOptions{}, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				refuse(w, http.StatusInternalServerError, "InternalError")
				return true
			}
			return false
		}, apierror.ErrStorageUnavailable, false},
	} {
		s, back, id, path := committing(t)
		back.blobs[path], back.fault = c.content, c.fault
		_, err := s.CommitUpload(t.Context(), user(t, "mia"), id, c.opts)
		if _, there := back.blobs[path]; !errors.Is(err, c.want) || there == c.gone {
			t.Errorf("%s: %v, and the staged blob is there: %v", what, err, there)
		}
	}
}

func TestCommitSparesLaterVersions(t *testing.T) {
	for what, content := range map[string]string{"stored": pngOf(100), "rejected": strings.Repeat("x", 100)} {
		var log logBuffer
		s, back, id, path := committing(t)
		s.log = slog.New(slog.NewTextHandler(&log, nil))
		back.blobs[path] = content
		back.fault = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodDelete {
				return false
			}
			if got := r.Header.Get("If-Match"); got != `"0x1"` { // the version that was looked at
				t.Errorf("%s: deleted if it is %q", what, got)
			}
			refuse(w, http.StatusPreconditionFailed, "ConditionNotMet")
			return true
		}
		_, err := s.CommitUpload(t.Context(), user(t, "mia"), id, signerapi.CommitOptions{})
		if (err == nil) != (what == "stored") || log.String() != "" {
			t.Errorf("%s: %v; the log has %s", what, err, log.String())
		}
		for _, outcome := range []string{removedCommitted, removedRefused} {
			if got := testutil.ToFloat64(s.metrics.unstaged.WithLabelValues(outcome)); got != 0 {
				t.Errorf("%s: %v are counted as %s", what, got, outcome)
			}
		}
	}
}
