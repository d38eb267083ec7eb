// Package k8s tests the manifests without a cluster.
package k8s

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jmespath/go-jmespath"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

const (
	aks            = "overlays/aks"
	emulator       = "overlays/emulator"
	settings       = aks + "/settings.env"
	shared         = aks + "/shared.env"
	authentication = "components/authentication/authentication.env"
	monitoring     = "components/monitoring/monitoring.env"
)

// Patterns of settings in these files.
const setting, commented = `(?m)^(?:# )?([A-Z_]+)=`, `(?m)^# ([A-Z_]+)=`

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// tree is a copy of the manifests, for a test to change.
type tree struct {
	*testing.T
	dir string
}

// filled returns a tree with a value for each setting that the aks overlay and its components need.
func filled(t *testing.T) tree {
	t.Helper()
	f := tree{t, t.TempDir()}
	if err := os.CopyFS(f.dir, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{settings, authentication, monitoring} {
		f.edit(file, commented, "$1=")
	}
	return f
}

// edit replaces each match of pattern in a file. It fails the test if there is none.
func (f tree) edit(path, pattern, with string) {
	f.Helper()
	re, text := regexp.MustCompile(pattern), read(f.T, filepath.Join(f.dir, path))
	if !re.MatchString(text) {
		f.Fatalf("%s has no %s", path, pattern)
	}
	if err := os.WriteFile(filepath.Join(f.dir, path), []byte(re.ReplaceAllString(text, with)), 0o600); err != nil {
		f.Fatal(err)
	}
}

// set sets a setting in a file, commented or not.
func (f tree) set(path, name, value string) {
	f.Helper()
	f.edit(path, `(?m)^(?:# )?`+name+`=.*$`, name+"="+value)
}

// switchOn switches components of the aks overlay on, which are separated by "|".
func (f tree) switchOn(components string) tree {
	f.Helper()
	f.edit(aks+"/kustomization.yaml", `(?m)^  # - (\S+/(?:`+components+`)) .*$`, "  - $1")
	return f
}

// manifests are the objects of an overlay.
type manifests struct {
	pods     []*corev1.PodTemplateSpec
	policy   networkingv1.NetworkPolicySpec
	document any // see wantRules
}

// build builds an overlay.
func (f tree) build(overlay string) manifests {
	f.Helper()
	m, err := build(filepath.Join(f.dir, overlay))
	if err != nil {
		f.Fatalf("%s: %v", overlay, err)
	}
	return m
}

var decoder = sync.OnceValues(func() (runtime.Decoder, error) {
	// The scheme of client-go has all groups; compiling and linting them takes half a minute.
	scheme := runtime.NewScheme()
	groups := runtime.NewSchemeBuilder(appsv1.AddToScheme, autoscalingv2.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme,
		policyv1.AddToScheme, rbacv1.AddToScheme)
	err := groups.AddToScheme(scheme)
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer(), err
})

// build builds an overlay. Each object must decode strictly into its Kubernetes type.
func build(path string) (m manifests, err error) {
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), path)
	if err != nil {
		return m, err
	}
	decode, err := decoder()
	if err != nil {
		return m, err
	}
	document, settings := map[string]any{"objects": built.Resources()}, map[string]map[string]string{}
	for _, r := range built.Resources() {
		kind, _ := document[r.GetKind()].(map[string]any)
		if kind == nil {
			kind = map[string]any{}
		}
		kind[r.GetName()], document[r.GetKind()] = r, kind
		if r.GetGvk().Group == "monitoring.coreos.com" {
			continue
		}
		object, _, err := decode.Decode([]byte(r.MustYaml()), nil, nil)
		if err != nil {
			return m, fmt.Errorf("%s: %w", r.CurId(), err)
		}
		switch o := object.(type) {
		case *corev1.ConfigMap:
			settings[o.Name] = o.Data
		case *networkingv1.NetworkPolicy:
			m.policy = o.Spec
		case *appsv1.Deployment:
			m.pods = append(m.pods, &o.Spec.Template)
			if o.Name == "cats-api" {
				document["pod"] = o.Spec.Template
			}
		}
	}
	pod := document["pod"].(corev1.PodTemplateSpec).Spec
	environment := map[string]any{}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		values := map[string]string{}
		for _, from := range c.EnvFrom {
			maps.Copy(values, settings[from.ConfigMapRef.Name])
		}
		for _, e := range c.Env {
			values[e.Name] = e.Value
		}
		document[c.Name], environment[c.Name] = c, values
	}
	document["environment"] = environment
	text, err := json.Marshal(document)
	return m, errors.Join(err, json.Unmarshal(text, &m.document))
}

var builtVariants map[string]manifests

// variants returns the two overlays, also with authentication, and the aks overlay with each component and with all. Tests must not
// change them.
func variants(t *testing.T) map[string]manifests {
	t.Helper()
	if builtVariants != nil {
		return builtVariants
	}
	all := map[string]manifests{"aks": filled(t).build(aks), "emulator": filled(t).build(emulator)}
	components, err := filepath.Glob("components/*")
	if err != nil || len(components) != 6 {
		t.Fatalf("the components are %q, %v", components, err)
	}
	for _, c := range components {
		f := filled(t).switchOn(filepath.Base(c))
		if filepath.Base(c) == "authentication" {
			f.edit(settings, "(?m)^ANONYMOUS_ACCESS=", "# $0")
		}
		all["aks with "+filepath.Base(c)] = f.build(aks)
	}
	f := filled(t).switchOn(".*")
	all["aks with everything"] = f.build(aks)
	f.edit(emulator+"/kustomization.yaml", "(?m)^resources:$", "components: [../../components/authentication]\n$0")
	all["emulator with authentication"] = f.build(emulator)
	builtVariants = all
	return all
}

// wantRules checks the rules of testdata/rules/NAME.txt. A rule is a JMESPath expression and its value. The names in expressions are
// objects (all of them), KIND."NAME" (an object), and of the Deployment cats-api: pod (its template), the names of its containers, and
// environment.CONTAINER (all variables). "variants: PATTERN" limits the rules below it.
func (m manifests) wantRules(t *testing.T, variant, name string) {
	t.Helper()
	limit := regexp.MustCompile("")
	for line := range strings.Lines(read(t, "testdata/rules/"+name+".txt")) {
		line = strings.TrimSpace(line)
		if pattern, ok := strings.CutPrefix(line, "variants: "); ok {
			limit = regexp.MustCompile(pattern)
			continue
		}
		if line == "" || line[0] == '#' || !limit.MatchString(variant) {
			continue
		}
		expression, value, _ := strings.Cut(line, " => ")
		var want any
		if err := json.Unmarshal([]byte(value), &want); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		got, err := jmespath.Search(expression, m.document)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %s: %v\n%s", variant, expression, err, diff)
		}
	}
}
