// Package k8s tests the manifests without a cluster.
package k8s

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resource"
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
	objects []runtime.Object     // without custom resources
	all     []*resource.Resource // with custom resources
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

var decoder = serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()

// build builds an overlay. Each object must decode strictly into its Kubernetes type.
func build(path string) (m manifests, err error) {
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), path)
	if err != nil {
		return m, err
	}
	m.all = built.Resources()
	for _, r := range m.all {
		if r.GetGvk().Group == "monitoring.coreos.com" {
			continue
		}
		object, _, err := decoder.Decode([]byte(r.MustYaml()), nil, nil)
		if err != nil {
			return m, fmt.Errorf("%s: %w", r.CurId(), err)
		}
		m.objects = append(m.objects, object)
	}
	return m, nil
}

var builtVariants map[string]manifests

// variants returns the two overlays, and the aks overlay with each component and with all. Tests must not change them.
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
		all["aks with "+filepath.Base(c)] = filled(t).switchOn(filepath.Base(c)).build(aks)
	}
	all["aks with everything"] = filled(t).switchOn(".*").build(aks)
	builtVariants = all
	return all
}

// with reports whether a variant has a component.
func with(variant, component string) bool {
	return strings.HasSuffix(variant, " "+component) || strings.HasSuffix(variant, " everything")
}

// find returns the only object of type T whose name begins with prefix.
func find[T runtime.Object](t *testing.T, m manifests, prefix string) T {
	t.Helper()
	var found []T
	for _, o := range m.objects {
		if typed, is := o.(T); is && strings.HasPrefix(o.(metav1.Object).GetName(), prefix) {
			found = append(found, typed)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects of type %T; want 1", len(found), *new(T))
	}
	return found[0]
}

// template returns the pod template of cats-api.
func (m manifests) template(t *testing.T) corev1.PodTemplateSpec {
	t.Helper()
	return find[*appsv1.Deployment](t, m, "cats-api").Spec.Template
}

func (m manifests) containers(t *testing.T) (signer, frontend corev1.Container) {
	t.Helper()
	pod := m.template(t).Spec
	return pod.InitContainers[len(pod.InitContainers)-1], pod.Containers[0]
}

// environment returns the variables of a container of cats-api.
func (m manifests) environment(t *testing.T, c corev1.Container) map[string]string {
	t.Helper()
	values := map[string]string{}
	for _, from := range c.EnvFrom {
		maps.Copy(values, find[*corev1.ConfigMap](t, m, from.ConfigMapRef.Name).Data)
	}
	for _, e := range c.Env {
		values[e.Name] = e.Value
	}
	return values
}

// want reports each rule that a variant does not keep.
func want(t *testing.T, variant string, rules map[string]bool) {
	t.Helper()
	for rule, kept := range rules {
		if !kept {
			t.Errorf("%s: want that %s", variant, rule)
		}
	}
}
