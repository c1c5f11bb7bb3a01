package main

import (
	"skimmer/internal/peer"
	"skimmer/internal/telemetry"
)

// peerMetrics are the node's counters as Prometheus reads them.
func peerMetrics(p *peer.Peer) []telemetry.Value {
	o := p.OriginStats()
	return []telemetry.Value{
		{Name: "origin_requests_total", Help: "HTTP requests made to registries and their storage.", Load: o.Requests.Load},
		{Name: "origin_bytes_total", Help: "Bytes received from registries and their storage.", Load: o.Bytes.Load},
		{Name: "origin_retries_total", Help: "Requests made again after one that failed.", Load: o.Retries.Load},
		{Name: "origin_token_fetches_total", Help: "Tokens fetched from token services.", Load: o.TokenFetches.Load},
		{Name: "store_hit_bytes_total", Help: "Bytes of blobs served from disk.", Load: func() int64 { return p.StoreStats().HitBytes }},
		{Name: "store_fetched_bytes_total", Help: "Bytes of blobs fetched and kept.", Load: func() int64 { return p.StoreStats().FetchedBytes }},
		{Name: "store_passed_bytes_total", Help: "Bytes of blobs passed on without being kept.", Load: func() int64 { return p.StoreStats().PassedBytes }},
		{Name: "store_evicted_bytes_total", Help: "Bytes of blobs removed to make space.", Load: func() int64 { return p.StoreStats().EvictedBytes }},
		{Name: "store_damaged_pieces_total", Help: "Pieces found damaged on disk.", Load: func() int64 { return p.StoreStats().CRCFailures }},
		{Name: "store_wrong_blobs_total", Help: "Blobs whose content was not what their digest says.", Load: func() int64 { return p.StoreStats().DigestFailures }},
		{Name: "store_bytes", Help: "Bytes of blobs on disk.", Load: func() int64 { return p.StoreStats().Used }},
		{Name: "layer_faults_total", Help: "Reads of mounted images that had to wait for data.", Load: func() int64 { return p.LayerStats().Faults }},
		{Name: "layer_fault_wait_nanoseconds_total", Help: "Time those reads waited.", Load: func() int64 { return int64(p.LayerStats().Waited) }},
		{Name: "layer_fetched_bytes_total", Help: "Compressed bytes read for mounted images.", Load: func() int64 { return p.LayerStats().Fetched }},
		{Name: "layer_inflated_bytes_total", Help: "Bytes of file content verified and kept.", Load: func() int64 { return p.LayerStats().Inflated }},
		{Name: "layer_corrupt_streams_total", Help: "Streams whose content was not what the image promises.", Load: func() int64 { return p.LayerStats().Corrupt }},
		{Name: "layer_timeouts_total", Help: "Reads that failed because data did not come in time.", Load: func() int64 { return p.LayerStats().Timeouts }},
		{Name: "layer_outages_total", Help: "Times that missing data could not be fetched and readers had to wait for it to be.", Load: func() int64 { return p.LayerStats().Outages }},
		{Name: "layer_retries_total", Help: "Fetches of missing data tried again while readers waited.", Load: func() int64 { return p.LayerStats().Retries }},
		{Name: "layer_errors_total", Help: "Fetches and reads of mounted images that failed.", Load: func() int64 { return p.LayerStats().Errors }},
	}
}
