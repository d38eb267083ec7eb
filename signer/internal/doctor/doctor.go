// Package doctor goes once through all that the signer needs of its settings, its
// identity and its storage, with the signer's own code, and says of each whether
// it works and what to do when it does not. It listens on nothing, so that it runs
// beside the signer.
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

	"cats.example/shared/pool"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/callers"
	"cats.example/signer/internal/identity"
)

// How long each check may take, and all of them but for a put that has begun and
// the deletion: under a minute in all.
const (
	exchangeLimit = 15 * time.Second
	storageLimit  = 13 * time.Second // two tries
	linkLimit     = 8 * time.Second
	deleteLimit   = 8 * time.Second
	clockLimit    = 6 * time.Second
	issuerLimit   = 6 * time.Second
	totalLimit    = 50 * time.Second
)

// clockBehind is how far the clock may be behind storage's before the check fails: short links would end at once.
const clockBehind = 5 * time.Minute

// picture is what the scratch blob holds: a PNG of one pixel.
var picture, _ = base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")

// Options are the signer's settings.
type Options struct {
	Pod    string  // its name; "" outside of Kubernetes
	Faults []error // of the settings, each on a line of its own

	// NoIdentity and NoStorage say that the settings do not tell enough to ask
	// for a token, or to reach storage.
	NoIdentity, NoStorage bool

	Identity identity.Options
	Storage  blobstore.Options // the credential is put in here
	// TokenProxy says that tokens are exchanged by AKS identity bindings, which
	// have an audience of their own.
	TokenProxy bool
	Callers    callers.Options // no Issuer where authentication is off
	Anonymous  bool            // authentication is off on purpose
	Transport  *http.Client    // without any credential
}

// visit is one run of all checks. A check returns why those that build on it need
// not be tried, "" when they can be.
type visit struct {
	Options
	report
	tokens *identity.Tokens
	store  *blobstore.Store
}

// Run makes all checks, writes a line and more for each to out as it goes, and
// reports whether none failed. It takes about a minute at most. What it stores it
// deletes again, also when ctx is done in between.
func Run(ctx context.Context, opts Options, out io.Writer) (healthy bool) {
	ctx, cancel := context.WithTimeoutCause(ctx, totalLimit, errors.New("the time was up"))
	defer cancel()
	v := &visit{Options: opts, report: report{out: out}}
	quiet, none := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	v.tokens = identity.New(opts.Identity, quiet, none)

	v.subject()
	v.settings()
	noToken := v.tokenFile(time.Now())
	noToken = v.exchange(ctx, noToken)
	noStorage := ""
	if opts.NoStorage {
		noStorage = "the settings do not say where storage is"
	} else {
		opts.Storage.Credential = v.tokens
		store, err := blobstore.New(opts.Storage, quiet, none)
		if err != nil {
			noStorage = err.Error()
		}
		v.store = store
	}
	noKey, noAnswer := v.key(ctx, first(noStorage, noToken))
	v.scratch(ctx, first(noStorage, noToken, noAnswer), noKey)
	v.clock(ctx, first(noStorage, noAnswer))
	v.callers(ctx, quiet)
	return v.end()
}

// first returns the first reason that there is.
func first(reasons ...string) string {
	for _, r := range reasons {
		if r != "" {
			return r
		}
	}
	return ""
}

// subject writes which pod, version and identity the report is about: during a rollout, several pods run with different ones.
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
		v.fail("settings", fault)
	}
	if len(v.Faults) == 0 {
		v.line(ok, "settings", "container %s of %s", v.Storage.Container, v.Storage.AccountURL)
	}
	if v.Anonymous {
		v.more("authentication is off (ANONYMOUS_ACCESS=true): every client can store, read, replace and delete every picture")
	}
}

func (v *visit) exchange(ctx context.Context, because string) string {
	const check, failed = "exchange", "there is no token"
	if v.NoIdentity {
		because = "the settings do not say which identity"
	}
	if v.skipped(ctx, check, because) {
		return failed
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeLimit)
	defer cancel()
	token, err := v.tokens.Fetch(ctx)
	if err != nil {
		if cause := errors.Unwrap(err); cause != nil {
			err = cause // without the code that is for the frontend
		}
		v.fail(check, err)
		return failed
	}
	v.line(ok, check, "a token for Blob Storage, for %v", left(token.ExpiresOn))
	return ""
}

// key also returns why nothing else of storage can be tried.
func (v *visit) key(ctx context.Context, because string) (noKey, noAnswer string) {
	const check, failed = "key", "there is no user delegation key"
	if v.skipped(ctx, check, because) {
		return failed, ""
	}
	ctx, cancel := context.WithTimeout(ctx, storageLimit)
	defer cancel()
	end, err := v.store.FetchKey(ctx)
	if err != nil {
		v.refused(check, err, "Storage Blob Delegator", "")
		if _, answered := errors.AsType[*blobstore.Refusal](err); !answered {
			noAnswer = "storage does not answer"
		}
		return failed, noAnswer
	}
	v.line(ok, check, "a user delegation key, for %v", left(end))
	return "", ""
}

// scratch stores a blob, reads it through links and deletes it.
func (v *visit) scratch(ctx context.Context, because, noKey string) {
	const notThere = "there is no scratch blob"
	if v.skipped(ctx, "put", because) {
		v.skipped(ctx, "link", notThere)
		return
	}
	blob := v.store.NewScratch()
	// Seen to its end, or the deletion could come before the put.
	put, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageLimit)
	err := blob.Put(put, picture, "image/png")
	cancel()
	gone := "the scratch blob is gone"
	if err != nil {
		v.refused("put", err, "Storage Blob Data Contributor", "/blobServices/default/containers/"+v.Storage.Container)
		v.skipped(ctx, "link", notThere)
		if r, answered := errors.AsType[*blobstore.Refusal](err); answered && r.Status < http.StatusInternalServerError {
			return // for certain nothing was stored
		}
		gone = "in case it was stored all the same"
	} else {
		v.line(ok, "put", "stored the scratch blob %s", blob.Name())
		v.links(ctx, blob, noKey)
		v.copy(ctx, blob, noKey)
	}

	// Whatever has happened until now, even if someone waits for the end.
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), deleteLimit)
	defer cancel()
	if err := blob.Delete(ctx); err != nil {
		v.fail("delete", fmt.Errorf("the scratch blob may be left behind: %w", err))
		v.more("delete it by hand: %s in the container %s", blob.Name(), v.Storage.Container)
		return
	}
	v.line(ok, "delete", "%s", gone)
}

func (v *visit) links(ctx context.Context, blob *blobstore.Scratch, because string) {
	const check = "link"
	if v.skipped(ctx, check, because) {
		return
	}
	account, base, err := blob.Links()
	if err != nil {
		v.fail(check, err)
		return
	}
	if err := v.get(ctx, string(account)); err != nil {
		v.fail(check, err)
	} else {
		v.line(ok, check, "a signed link gives the same bytes, without any credential")
	}
	if base == account || v.skipped(ctx, "link base", "") {
		return
	}
	if err := v.get(ctx, string(base)); err != nil {
		said, _, _ := strings.Cut(err.Error(), "; fix: ")
		v.line(warn, "link base", "%s: %s", v.Storage.LinkBase, said)
		v.more("it need not be reachable from inside the cluster: try a link from outside")
		return
	}
	v.line(ok, "link base", "the same through %s", v.Storage.LinkBase)
}

// copy has storage copy the blob, where it must for what is sent straight to it.
func (v *visit) copy(ctx context.Context, blob *blobstore.Scratch, because string) {
	const check = "copy"
	if v.Storage.MaxDirect == 0 || v.skipped(ctx, check, because) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storageLimit)
	defer cancel()
	if err := blob.Copy(ctx); err != nil {
		v.fail(check, err)
		return
	}
	v.line(ok, check, "storage copies within the account, as it must for what is sent straight to it")
}

// get reads a link and returns an error, which does not hold it, unless it gives
// the scratch blob.
func (v *visit) get(ctx context.Context, link string) error {
	ctx, cancel := context.WithTimeout(ctx, linkLimit)
	defer cancel()
	resp, err := v.ask(ctx, http.MethodGet, link)
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

// ask sends a request without any credential but what is in the URL. The error does not hold the URL.
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

func (v *visit) clock(ctx context.Context, because string) {
	const check = "clock"
	if v.skipped(ctx, check, because) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, clockLimit)
	defer cancel()
	sent := time.Now()
	// It may refuse; its time is in the answer all the same.
	resp, err := v.ask(ctx, http.MethodHead, v.Storage.AccountURL+"/"+v.Storage.Container+"?restype=container")
	if err != nil {
		v.fail(check, err)
		return
	}
	_ = resp.Body.Close()
	came := time.Now()
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		v.problem(warn, check, errors.New("storage's answer has no date to compare with"))
		return
	}
	date = date.Add(time.Second / 2) // the header has whole seconds, rounded down
	ahead := sent.Add(came.Sub(sent) / 2).Sub(date)
	err = blobstore.ClockFault(ahead)
	switch {
	case err == nil:
		v.line(ok, check, "within %v of storage's", ahead.Abs().Truncate(time.Second)+time.Second)
	case ahead > blobstore.LinkSkew || -ahead > clockBehind:
		v.fail(check, err)
	default:
		v.problem(warn, check, err)
	}
}

// callers fetches the issuer's configuration and keys, unless authentication is off.
func (v *visit) callers(ctx context.Context, log *slog.Logger) {
	const check = "callers"
	if !v.Callers.On() || v.skipped(ctx, check, "") {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, issuerLimit)
	defer cancel()
	reg := prometheus.NewRegistry()
	v.Callers.Waiters = pool.NewSet("doctor", 0, reg).New("waiters", 1)
	if err := callers.New(v.Callers, log, reg).Check(ctx); err != nil {
		fix := cmp.Or(network(err.Error()), "OIDC_ISSUER must be the issuer as its tokens have it in iss, and its configuration, at OIDC_DISCOVERY_URL if that is set, be reachable from here over https")
		v.fail(check, fmt.Errorf("tokens of %s cannot be verified: %w; fix: %s", v.Callers.Issuer, err, fix))
		return
	}
	v.line(ok, check, "tokens of %s for %s are verified, and their %s is the user", v.Callers.Issuer, v.Callers.Audience, v.Callers.Claim)
}

// refused is fail, with the command that gives the role if that is what is missing.
// scope is what comes behind the account's resource id.
func (v *visit) refused(check string, err error, role, scope string) {
	v.fail(check, err)
	r, answered := errors.AsType[*blobstore.Refusal](err)
	if !answered || r.Code != "AuthorizationPermissionMismatch" || v.Identity.ClientID == "" {
		return
	}
	host, _ := url.Parse(v.Storage.AccountURL)
	account, _, _ := strings.Cut(host.Hostname(), ".")
	v.more(`az role assignment create --assignee %s --role "%s" --scope "$(az storage account show --name %s --query id --output tsv)%s"`,
		v.Identity.ClientID, role, account, scope)
}

// left is how long it is until t, in whole seconds.
func left(t time.Time) time.Duration { return time.Until(t).Round(time.Second) }
