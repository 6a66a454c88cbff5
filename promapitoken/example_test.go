package promapitoken_test

import (
	"context"
	"fmt"
	"log"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/promapitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func ExampleNew() {
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	if err != nil {
		log.Fatal(err)
	}
	defer svc.Close()
	collector, err := promapitoken.New(svc, promapitoken.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer collector.Close()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector) // served by promhttp.HandlerFor(registry, …)

	if _, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice"}); err != nil {
		log.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "apitoken_operations_total" {
			for _, m := range f.GetMetric() {
				if m.GetCounter().GetValue() > 0 {
					fmt.Println(m.GetLabel()[0].GetValue(), m.GetLabel()[1].GetValue(), m.GetCounter().GetValue())
				}
			}
		}
	}
	// Output: issue ok 1
}
