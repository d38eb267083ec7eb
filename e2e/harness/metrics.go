package harness

import (
	"net/http"
	"strconv"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Resources are the resources that a process must release after a load. Share and More bound what may remain: a share of the
// value before the load, and an absolute value.
var Resources = []struct {
	Name, metric string
	unit         float64
	Share, More  float64
}{
	{"goroutines", "go_goroutines", 1, 0, 12},
	{"descriptors", "process_open_fds", 1, 0, 12},
	{"live heap, MiB", "go_memstats_heap_alloc_bytes", 1 << 20, .5, 2},
	{"resident, MiB", "process_resident_memory_bytes", 1 << 20, .25, 12},
}

// ResourcesOf returns the values of a process in the order of Resources. live collects garbage first.
func ResourcesOf(t *testing.T, ops string, live bool) []float64 {
	t.Helper()
	if live {
		for range 2 { // what finalizers hold is free with the second
			Do(t, http.MethodGet, ops+"/debug/pprof/heap?gc=1", "", nil).Want(t, http.StatusOK)
		}
	}
	var values []float64
	for _, what := range Resources {
		values = append(values, Series(t, ops, what.metric)/what.unit)
	}
	return values
}

func metrics(t *testing.T, base string) string {
	t.Helper()
	return string(Do(t, http.MethodGet, base+"/metrics", "", nil).Want(t, http.StatusOK).Body)
}

// Series returns the value of a series, 0 if it is absent.
func Series(t *testing.T, base, series string) float64 {
	t.Helper()
	_, value, _ := strings.Cut("\n"+metrics(t, base), "\n"+series+" ")
	value, _, _ = strings.Cut(value, "\n")
	n, _ := strconv.ParseFloat(value, 64)
	return n
}

// Families returns the metrics at the ops URL base by name.
func Families(t *testing.T, base string) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(metrics(t, base)))
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// Sum returns the sum over all series of a metric.
func Sum(t *testing.T, base, name string) (total float64) {
	t.Helper()
	for _, m := range Families(t, base)[name].GetMetric() {
		total += m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue()
	}
	return total
}
