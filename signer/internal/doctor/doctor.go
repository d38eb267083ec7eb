// Package doctor checks, with the signer's own code, the settings, the identity and the storage account of the signer. It
// reports for each whether it works and what to do if it does not. It listens on nothing, so it runs beside the signer.
package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/version"

	"cats.example/shared/config"
	"cats.example/signer/internal/auth"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/identity"
)

// The time limits of a check, and of all together except the deletion, and the upload, which an interrupt does not end.
const (
	checkLimit = 13 * time.Second // two tries
	totalLimit = 50 * time.Second
)

// clockBehind is how far the clock may be behind storage's before the check fails: short links would end at once.
const clockBehind = 5 * time.Minute

// Options are the signer's settings.
type Options struct {
	Faults    error // of the settings, each on a line of its own
	Identity  identity.Settings
	Storage   blobstore.Settings
	Callers   auth.Settings
	Transport *http.Client // without any credential
}

// warning is an error with which the signer works.
type warning struct{ error }

// visit is one run of all checks.
type visit struct {
	Options
	report
	failed map[string]error // why checks cannot work that rely on one that failed or was skipped, by its name
	notes  []string         // of the check that runs
	tokens *identity.Tokens
	store  *blobstore.Store

	noToken, noAnswer error              // why checks cannot work that need the federated token, or storage
	blob              *blobstore.Scratch // nil as long as none can be in storage
}

// Run makes all checks, writes each to out when it ends, and returns true if none failed. It takes about a minute at most. It
// deletes the blob that it stores, also if ctx is canceled.
func Run(ctx context.Context, opts Options, out io.Writer) (healthy bool) {
	ctx, cancel := context.WithTimeout(ctx, totalLimit)
	defer cancel()
	v := &visit{Options: opts, report: report{out: out, count: map[string]int{}}, failed: map[string]error{}}
	quiet, none := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	v.tokens = identity.New(identity.Options{Settings: opts.Identity, Transport: opts.Transport}, quiet, none)
	store, err := blobstore.New(blobstore.Options{Settings: opts.Storage, Credential: v.tokens, Transport: opts.Transport}, quiet, none)
	v.store = store
	noFile := config.Require(opts.Identity.TokenFile != "", "AZURE_FEDERATED_TOKEN_FILE is not set")
	noIdentity := config.Require(opts.Identity.Validate() == nil, "the settings of the identity are not valid")
	noAccount := config.Require(err == nil && opts.Storage.Validate() == nil, "the settings of storage are not valid")

	v.subject()
	v.settings()
	if opts.Identity.Credential != identity.Default {
		v.try(ctx, "token file", noFile, v.tokenFile)
	}
	v.try(ctx, "exchange", cmp.Or(noIdentity, v.noToken), v.exchange)
	v.try(ctx, "key", cmp.Or(noAccount, v.failed["exchange"]), v.key)
	v.try(ctx, "put", cmp.Or(noAccount, v.failed["exchange"], v.noAnswer), v.put)
	noLink := cmp.Or(v.failed["put"], v.failed["key"])
	v.try(ctx, "link", noLink, v.link)
	if noLink == nil && opts.Storage.LinkBaseURL != "" {
		v.try(ctx, "link base", nil, v.linkBase)
	}
	if noLink == nil && opts.Storage.MaxDirectUploadSize > 0 {
		v.try(ctx, "copy", nil, v.copy)
	}
	if v.blob != nil {
		v.try(context.WithoutCancel(ctx), "delete", nil, v.delete)
	}
	v.try(ctx, "clock", cmp.Or(noAccount, v.noAnswer), v.clock)
	if opts.Callers.AuthenticationOn() {
		v.try(ctx, "callers", nil, v.callers)
	}
	return v.end()
}

// try makes a check, unless a reason is given or ctx is done, and writes its lines. run returns what works, or an error, which may
// be a [warning], and adds lines below with [visit.note].
func (v *visit) try(ctx context.Context, name string, unless error, run func(context.Context) (string, error)) {
	if ctx.Err() != nil {
		unless = errors.New("it was interrupted, or the time was up")
	}
	v.failed[name] = errors.New(name + " did not succeed")
	if unless != nil {
		v.line(skip, name, "not tried, because "+unless.Error())
		return
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	v.notes = nil
	works, err := run(ctx)
	if err == nil {
		v.line(ok, name, works)
		delete(v.failed, name)
	} else {
		v.problem(name, err)
	}
	for _, n := range v.notes {
		v.more(n)
	}
}

// note adds a line below that of the check that runs.
func (v *visit) note(format string, args ...any) {
	v.notes = append(v.notes, fmt.Sprintf(format, args...))
}

// subject writes the pod, its version and its identity. During a rollout, pods with different ones run.
func (v *visit) subject() {
	pod := "none: not in Kubernetes"
	if os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		pod, _ = os.Hostname()
	}
	v.write("pod         " + pod)
	v.write(fmt.Sprintf("version     %s (revision %s)", cmp.Or(version.Version, "unknown"), cmp.Or(version.Revision, "unknown")))
	v.write("client ID   " + cmp.Or(v.Identity.ClientID, "not set"))
	v.write("tenant      " + cmp.Or(v.Identity.TenantID, "not set"))
	v.write("")
}

func (v *visit) settings() {
	if v.Faults == nil {
		v.line(ok, "settings", fmt.Sprintf("container %s of %s", v.Storage.Container, v.Storage.AccountURL))
	} else {
		for fault := range strings.SplitSeq(v.Faults.Error(), "\n") {
			v.problem("settings", errors.New(fault))
		}
	}
	if v.Callers.AnonymousAccess {
		v.more("authentication is off (ANONYMOUS_ACCESS=true): every client can store, read, replace and delete every picture")
	}
}

func (v *visit) exchange(ctx context.Context) (string, error) {
	token, err := v.tokens.Fetch(ctx)
	return fmt.Sprintf("a token for Blob Storage, for %v", left(token.ExpiresOn)), err
}

func (v *visit) key(ctx context.Context) (string, error) {
	end, err := v.store.FetchKey(ctx)
	if _, answered := errors.AsType[*blobstore.Refusal](err); err != nil && !answered {
		v.noAnswer = errors.New("storage does not answer")
	}
	v.noteRole(err, "Storage Blob Delegator", "")
	return fmt.Sprintf("a user delegation key, for %v", left(end)), err
}

// put stores the scratch blob. ctx does not end it: the deletion could reach storage before the upload.
func (v *visit) put(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkLimit)
	defer cancel()
	v.blob = v.store.NewScratch()
	stored := "stored the scratch blob " + v.blob.Name()
	err := v.blob.Put(ctx)
	if r, answered := errors.AsType[*blobstore.Refusal](err); answered && r.Status < http.StatusInternalServerError {
		v.blob = nil
	}
	v.noteRole(err, "Storage Blob Data Contributor", "/blobServices/default/containers/"+v.Storage.Container)
	return stored, err
}

// delete removes the scratch blob, which may be in storage although the upload failed.
func (v *visit) delete(ctx context.Context) (string, error) {
	return "the scratch blob is gone", v.blob.Delete(ctx)
}

func (v *visit) link(ctx context.Context) (string, error) {
	return "a signed link gives the same bytes, without any credential", v.blob.Read(ctx, v.Storage.AccountURL)
}

func (v *visit) linkBase(ctx context.Context) (string, error) {
	if err := v.blob.Read(ctx, v.Storage.LinkBaseURL); err != nil {
		said, _, _ := strings.Cut(err.Error(), "; fix: ")
		return "", warning{fmt.Errorf("%s: %s; fix: try a link from outside; LINK_BASE_URL need not be reachable from inside the cluster", v.Storage.LinkBaseURL, said)}
	}
	return "the same through " + v.Storage.LinkBaseURL, nil
}

// copy has storage copy the scratch blob, as the commit of a direct upload does.
func (v *visit) copy(ctx context.Context) (string, error) {
	return "storage copies within the account, as the commit of a direct upload does", v.blob.Copy(ctx)
}

func (v *visit) clock(ctx context.Context) (string, error) {
	ahead, err := v.store.ClockAhead(ctx)
	if err != nil {
		return "", err
	}
	err = blobstore.ClockFault(ahead)
	if err != nil && ahead <= blobstore.LinkSkew && ahead >= -clockBehind {
		err = warning{err}
	}
	return fmt.Sprintf("within %v of storage's", ahead.Abs().Truncate(time.Second)+time.Second), err
}

// callers fetches the configuration and the keys of the issuer of callers' tokens.
func (v *visit) callers(ctx context.Context) (string, error) {
	c := auth.New(auth.Options{Settings: v.Callers, Client: v.Transport}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	works := fmt.Sprintf("tokens of %s for %s are verified, and their %s is the user", v.Callers.Issuer, v.Callers.Audience, v.Callers.UserClaim)
	return works, c.Fetch(ctx)
}

// noteRole adds the command that assigns role, if err says that the identity lacks it. The scope of the role is the storage
// account's resource ID followed by scope.
func (v *visit) noteRole(err error, role, scope string) {
	r, answered := errors.AsType[*blobstore.Refusal](err)
	if !answered || r.Code != "AuthorizationPermissionMismatch" || v.Identity.ClientID == "" {
		return
	}
	account, _, _ := strings.Cut(strings.TrimPrefix(v.Storage.AccountURL, "https://"), ".")
	v.note(`az role assignment create --assignee %s --role "%s" --scope "$(az storage account show --name %s --query id --output tsv)%s"`,
		v.Identity.ClientID, role, account, scope)
}

// left returns the time until t in whole seconds.
func left(t time.Time) time.Duration { return time.Until(t).Round(time.Second) }
