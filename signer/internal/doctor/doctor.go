// Package doctor checks, with the signer's own code, the settings, the identity and the storage account of the signer. It
// reports for each whether it works and what to do if it does not. It listens on nothing, so it runs beside the signer.
package doctor

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/version"

	"cats.example/shared/signerapi"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/callers"
	"cats.example/signer/internal/identity"
)

// The time limits of the checks, and of all together except the upload, which an interrupt does not end, and the deletion.
const (
	exchangeLimit = 15 * time.Second
	storageLimit  = 13 * time.Second // two tries
	linkLimit     = 8 * time.Second
	deleteLimit   = 8 * time.Second
	clockLimit    = 6 * time.Second
	totalLimit    = 50 * time.Second
)

// clockBehind is how far the clock may be behind storage's before the check fails: short links would end at once.
const clockBehind = 5 * time.Minute

// picture is the content of the scratch blob: a PNG of one pixel.
var picture, _ = base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")

// Options are the signer's settings.
type Options struct {
	Pod    string  // its name; "" outside of Kubernetes
	Faults []error // of the settings, each on a line of its own

	NoIdentity bool // the settings are not sufficient to request a token
	NoStorage  bool // the settings are not sufficient to reach storage

	Identity   identity.Options
	Storage    blobstore.Options // without Credential
	TokenProxy bool              // AKS identity bindings exchange the tokens, which have another audience then
	Callers    callers.Options   // no Issuer if authentication is off
	Anonymous  bool              // ANONYMOUS_ACCESS=true
	Transport  *http.Client      // without any credential
}

// check is one line of the report, with more lines below it.
type check struct {
	name  string
	limit time.Duration
	// unless is why the check cannot work; "" to try it.
	unless string
	// run returns what works, or an error, which may be a [warning]. It adds lines below with [visit.note].
	run func(context.Context) (string, error)
	// lack is what other checks lack after this one failed or was skipped.
	lack string
}

// warning is an error with which the signer works.
type warning struct{ error }

// visit is one run of all checks.
type visit struct {
	Options
	report
	notes  []string // of the check that runs
	tokens *identity.Tokens
	store  *blobstore.Store

	noFile, noAnswer string             // why checks cannot work that need the token file, or storage
	blob             *blobstore.Scratch // nil as long as none can be in storage
}

// Run makes all checks, writes each to out when it ends, and returns true if none failed. It takes about a minute at most. It
// deletes the blob that it stores, also if ctx is canceled.
func Run(ctx context.Context, opts Options, out io.Writer) (healthy bool) {
	ctx, cancel := context.WithTimeoutCause(ctx, totalLimit, errors.New("the time was up"))
	defer cancel()
	v := &visit{Options: opts, report: report{out: out}}
	quiet, none := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	v.tokens = identity.New(opts.Identity, quiet, none)
	noIdentity, noAccount := "", ""
	if opts.NoIdentity {
		noIdentity = "the settings do not say which identity"
	}
	opts.Storage.Credential = v.tokens
	if opts.NoStorage {
		noAccount = "the settings do not say where storage is"
	} else if store, err := blobstore.New(opts.Storage, quiet, none); err != nil {
		noAccount = err.Error()
	} else {
		v.store = store
	}

	v.subject()
	v.settings()
	v.try(ctx, check{name: "token file", unless: v.noTokenFile(), run: v.tokenFile})
	noToken := v.try(ctx, check{name: "exchange", limit: exchangeLimit, unless: cmp.Or(noIdentity, v.noFile), run: v.exchange, lack: "there is no token"})
	noKey := v.try(ctx, check{name: "key", limit: storageLimit, unless: cmp.Or(noAccount, noToken), run: v.key, lack: "there is no user delegation key"})
	noBlob := v.try(ctx, check{name: "put", unless: cmp.Or(noAccount, noToken, v.noAnswer), run: v.put, lack: "there is no scratch blob"})
	v.try(ctx, check{name: "link", limit: linkLimit, unless: cmp.Or(noBlob, noKey), run: v.link})
	if base := v.Storage.LinkBase; cmp.Or(noBlob, noKey) == "" && base != "" && base != v.Storage.AccountURL {
		v.try(ctx, check{name: "link base", limit: linkLimit, run: v.linkBase})
	}
	if noBlob == "" && v.Storage.MaxDirect > 0 {
		v.try(ctx, check{name: "copy", limit: storageLimit, unless: noKey, run: v.copy})
	}
	if v.blob != nil {
		v.try(context.WithoutCancel(ctx), check{name: "delete", limit: deleteLimit, run: v.delete})
	}
	v.try(ctx, check{name: "clock", limit: clockLimit, unless: cmp.Or(noAccount, v.noAnswer), run: v.clock})
	if v.Callers.On() {
		v.try(ctx, check{name: "callers", run: v.callers})
	}
	return v.end()
}

// try makes a check, unless ctx is done, and writes its lines. It returns "" if the check succeeded, c.lack otherwise.
func (v *visit) try(ctx context.Context, c check) (lack string) {
	if ctx.Err() != nil {
		v.interrupted = true
		c.unless = context.Cause(ctx).Error()
		if errors.Is(context.Cause(ctx), context.Canceled) {
			c.unless = "it was interrupted"
		}
	}
	if c.unless != "" {
		v.line(skip, c.name, "not tried, because %s", c.unless)
		return c.lack
	}
	if c.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.limit)
		defer cancel()
	}
	v.notes = nil
	works, err := c.run(ctx)
	if err == nil {
		v.line(ok, c.name, "%s", works)
	} else {
		v.problem(c.name, err)
		lack = c.lack
	}
	for _, n := range v.notes {
		v.more("%s", n)
	}
	return lack
}

// note adds a line below that of the check that runs.
func (v *visit) note(format string, args ...any) {
	v.notes = append(v.notes, fmt.Sprintf(format, args...))
}

// subject writes the pod, its version and its identity. During a rollout, pods with different ones run.
func (v *visit) subject() {
	for _, line := range [][2]string{
		{"pod", cmp.Or(v.Pod, "none: not in Kubernetes")},
		{"version", fmt.Sprintf("%s (revision %s)", cmp.Or(version.Version, "unknown"), cmp.Or(version.Revision, "unknown"))},
		{"client ID", cmp.Or(v.Identity.ClientID, "not set")},
		{"tenant", cmp.Or(v.Identity.TenantID, "not set")},
	} {
		v.write(fmt.Sprintf("%-10s  %s", line[0], line[1]))
	}
	v.write("")
}

func (v *visit) settings() {
	for _, fault := range v.Faults {
		v.problem("settings", fault)
	}
	if len(v.Faults) == 0 {
		v.line(ok, "settings", "container %s of %s", v.Storage.Container, v.Storage.AccountURL)
	}
	if v.Anonymous {
		v.more("authentication is off (ANONYMOUS_ACCESS=true): every client can store, read, replace and delete every picture")
	}
}

func (v *visit) exchange(ctx context.Context) (string, error) {
	token, err := v.tokens.Fetch(ctx)
	if err != nil {
		return "", cmp.Or(errors.Unwrap(err), err) // without the code that is for the frontend
	}
	return fmt.Sprintf("a token for Blob Storage, for %v", left(token.ExpiresOn)), nil
}

func (v *visit) key(ctx context.Context) (string, error) {
	end, err := v.store.FetchKey(ctx)
	if err != nil {
		if _, answered := errors.AsType[*blobstore.Refusal](err); !answered {
			v.noAnswer = "storage does not answer"
		}
		v.noteRole(err, "Storage Blob Delegator", "")
		return "", err
	}
	return fmt.Sprintf("a user delegation key, for %v", left(end)), nil
}

// put stores the scratch blob. ctx does not end it: the deletion could reach storage before the upload.
func (v *visit) put(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageLimit)
	defer cancel()
	v.blob = v.store.NewScratch()
	stored := "stored the scratch blob " + v.blob.Name()
	err := v.blob.Put(ctx, picture)
	if r, answered := errors.AsType[*blobstore.Refusal](err); answered && r.Status < http.StatusInternalServerError {
		v.blob = nil
	}
	v.noteRole(err, "Storage Blob Data Contributor", "/blobServices/default/containers/"+v.Storage.Container)
	return stored, err
}

// delete removes the scratch blob, which may be in storage although the upload failed.
func (v *visit) delete(ctx context.Context) (string, error) {
	if err := v.blob.Delete(ctx); err != nil {
		v.note("delete it by hand: %s in the container %s", v.blob.Name(), v.Storage.Container)
		return "", fmt.Errorf("the scratch blob may be left behind: %w", err)
	}
	return "the scratch blob is gone", nil
}

func (v *visit) link(ctx context.Context) (string, error) {
	account, err := v.blob.Link(v.Storage.AccountURL)
	if err == nil {
		err = v.get(ctx, account)
	}
	return "a signed link gives the same bytes, without any credential", err
}

func (v *visit) linkBase(ctx context.Context) (string, error) {
	base, err := v.blob.Link(v.Storage.LinkBase)
	if err == nil {
		err = v.get(ctx, base)
	}
	if err != nil {
		said, _, _ := strings.Cut(err.Error(), "; fix: ")
		return "", warning{fmt.Errorf("%s: %s; fix: try a link from outside; LINK_BASE_URL need not be reachable from inside the cluster", v.Storage.LinkBase, said)}
	}
	return "the same through " + v.Storage.LinkBase, nil
}

// copy has storage copy the scratch blob, as the commit of a direct upload does.
func (v *visit) copy(ctx context.Context) (string, error) {
	return "storage copies within the account, as the commit of a direct upload does", v.blob.Copy(ctx)
}

// get returns an error unless link returns the content of the scratch blob. The error does not hold the link.
func (v *visit) get(ctx context.Context, link signerapi.SignedURL) error {
	resp, err := v.ask(ctx, http.MethodGet, string(link))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, int64(len(picture))+1))
	code := resp.Header.Get("X-Ms-Error-Code")
	switch {
	case resp.StatusCode != http.StatusOK && code == "AuthorizationFailure":
		return fmt.Errorf("a signed link gets %d %s; fix: the account's network rules let the identity in, but not a reader: links work only from networks that they allow", resp.StatusCode, code)
	case resp.StatusCode == http.StatusForbidden:
		return fmt.Errorf("a signed link gets %d %s; fix: look at the clock below; the identity must be allowed to read the container, and a new role takes minutes to be known", resp.StatusCode, code)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("a signed link gets %d %s", resp.StatusCode, code)
	case err != nil:
		return fmt.Errorf("reading the answer: %w", err)
	case string(body) != string(picture):
		return errors.New("a signed link gives other bytes than were stored; fix: something between here and storage answers in its place")
	}
	return nil
}

// ask sends a request whose only credential is the signature in the URL, if any. The error does not hold the URL.
func (v *visit) ask(ctx context.Context, method, link string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, link, nil)
	if err != nil {
		return nil, errors.New("the link is not a URL")
	}
	resp, err := v.Transport.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no answer from %s: %w", req.URL.Host, errors.Unwrap(err))
	}
	return resp, nil
}

func (v *visit) clock(ctx context.Context) (string, error) {
	sent := time.Now()
	// Storage may reject this request: its response has a date nevertheless.
	resp, err := v.ask(ctx, http.MethodHead, v.Storage.AccountURL+"/"+v.Storage.Container+"?restype=container")
	if err != nil {
		return "", err
	}
	_ = resp.Body.Close()
	took := time.Since(sent)
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return "", warning{errors.New("storage's answer has no date to compare with")}
	}
	date = date.Add(time.Second / 2) // the header has whole seconds, rounded down
	ahead := sent.Add(took / 2).Sub(date)
	err = blobstore.ClockFault(ahead)
	if err != nil && ahead <= blobstore.LinkSkew && ahead >= -clockBehind {
		err = warning{err}
	}
	return fmt.Sprintf("within %v of storage's", ahead.Abs().Truncate(time.Second)+time.Second), err
}

// callers fetches the configuration and the keys of the issuer of callers' tokens.
func (v *visit) callers(ctx context.Context) (string, error) {
	if err := callers.New(v.Callers, slog.New(slog.DiscardHandler), prometheus.NewRegistry()).Fetch(ctx); err != nil {
		return "", fmt.Errorf("tokens of %s cannot be verified: %w", v.Callers.Issuer, err)
	}
	return fmt.Sprintf("tokens of %s for %s are verified, and their %s is the user", v.Callers.Issuer, v.Callers.Audience, v.Callers.Claim), nil
}

// noteRole adds the command that assigns role, if err says that the identity lacks it. The scope of the role is the storage
// account's resource ID followed by scope.
func (v *visit) noteRole(err error, role, scope string) {
	r, answered := errors.AsType[*blobstore.Refusal](err)
	if !answered || r.Code != "AuthorizationPermissionMismatch" || v.Identity.ClientID == "" {
		return
	}
	host, _ := url.Parse(v.Storage.AccountURL)
	account, _, _ := strings.Cut(host.Hostname(), ".")
	v.note(`az role assignment create --assignee %s --role "%s" --scope "$(az storage account show --name %s --query id --output tsv)%s"`,
		v.Identity.ClientID, role, account, scope)
}

// left returns the time until t in whole seconds.
func left(t time.Time) time.Duration { return time.Until(t).Round(time.Second) }
