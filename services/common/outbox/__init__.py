"""What a service must not lose on its way to the audit store: records, the files or the table that
hold them, and the shipper that hands them over.
"""
