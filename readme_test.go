package apitoken_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var goBlock = regexp.MustCompile("(?s)```go\n(.*?)```")

// TestReadmeCompiles builds each Go block of the README: a whole program as it stands, a piece with the imports that its
// names need.
func TestReadmeCompiles(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("README.md")
	require.NoError(t, err)
	blocks := goBlock.FindAllStringSubmatch(string(doc), -1)
	require.GreaterOrEqual(t, len(blocks), 4)
	const module = "github.com/apitoken-go/apitoken"
	imports := map[string]string{"apitoken": module, "httpauth": module + "/httpauth", "remote": module + "/remote", "memstore": module + "/store/memstore", "boltstore": module + "/store/boltstore",
		"storetest": module + "/store/storetest", "store": module + "/store", "ledger": module + "/ledger", "oauthhttp": module + "/oauthhttp", "misuse": module + "/misuse", "report": module + "/report",
		"pgstore": module + "/store/pgstore", "redisstore": module + "/store/redisstore", "etcdstore": module + "/store/etcdstore",
		"pgxpool": "github.com/jackc/pgx/v5/pgxpool", "redis": "github.com/redis/go-redis/v9", "clientv3": "go.etcd.io/etcd/client/v3",
		"apitokentest": module + "/apitokentest", "json": "encoding/json", "httptest": "net/http/httptest",
		"http": "net/http", "context": "context", "time": "time", "testing": "testing", "fmt": "fmt", "log": "log", "errors": "errors", "os": "os"}
	// Inside the module, so that its packages resolve; a name that go tooling passes over.
	dir, err := os.MkdirTemp(".", "_readme")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var packages []string
	for i, b := range blocks {
		code := b[1]
		name := fmt.Sprintf("block%d", i)
		if !strings.HasPrefix(code, "package ") {
			var head strings.Builder
			head.WriteString("package " + name + "\n\nimport (\n")
			for word, path := range imports {
				if regexp.MustCompile(`\b` + word + `\.[A-Z]`).MatchString(code) {
					fmt.Fprintf(&head, "\t%s %q\n", word, path)
				}
			}
			code = head.String() + ")\n\n" + code
			if strings.Contains(code, "HandlerFunc(list)") { // the host's own
				code += "\nfunc list(http.ResponseWriter, *http.Request) {}\n"
			}
		}
		sub := filepath.Join(dir, name)
		require.NoError(t, os.Mkdir(sub, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(sub, "block.go"), []byte(code), 0o644))
		packages = append(packages, "./"+filepath.ToSlash(sub))
	}
	out, err := exec.Command("go", append([]string{"vet"}, packages...)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}
